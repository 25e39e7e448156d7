"""How many cells of a withdrawal a selection held, by what is remembered of its snapshot."""

from __future__ import annotations

import ast
import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

from cellmill.atlas import Atlas
from cellmill.atlas.forgotten import Held
from cellmill.atlas.predicate import parse
from cellmill.atlas.pruning import decide
from cellmill.atlas.standing import Standing
from cellmill.atlas.summary import Facts
from cellmill.errors import ConfigError
from cellmill.lineage import Lineage


def bounds(held: Iterable[Held], snapshot: Lineage, selected: str | None, where: str) -> tuple[int, int]:
    """Return how many of the cells were selected: at least, and at most.

    Parameters
    ----------
    held
        What the snapshot held of the cells, by source.
    snapshot
        Its lineage, which says how many cells of each source were selected.
    selected
        The predicate of the selection; None for all cells.
    where
        The predicate of the withdrawal.
    """
    counts = {
        (dataset.name, source.digest): source.facts.get("cells")
        for dataset in snapshot.parents
        for source in dataset.parents
    }
    least = most = 0
    for one in held:
        n = one.told + one.known
        chosen = counts.get((one.dataset, one.source_digest), 0)
        if not isinstance(chosen, int):
            most += n  # the lineage does not say
            continue
        answer = _decided(selected, where, one) if selected else True
        if answer is None:
            # Of a source's cells some were not selected, and it may have been these.
            least += max(0, chosen + n - one.of)
            most += min(chosen, n)
        elif answer:
            least, most = least + n, most + n
    return least, most


def least_by_files(atlas: Atlas, snapshot: Lineage, withdrawals: Iterable[Standing]) -> int:
    """Return how many cells of withdrawals a selection held at least, by the number of cells that its files have.

    Where 90 of the 100 cells of a file were selected, and 20 of it are withdrawn, 10 or more of these were selected.

    Parameters
    ----------
    atlas
        Its reports say how many cells a file has.
    snapshot
        The lineage of the snapshot, which says how many cells of each file were selected.
    withdrawals
        What was withdrawn: the same cells each.
    """
    withdrawn: Counter[str] = Counter()
    for one in withdrawals:
        withdrawn |= Counter(one.taken.n_by_file())
    least = 0
    for dataset in snapshot.parents:
        for source in dataset.parents:
            selected = source.facts.get("cells")
            key = f"reports/datasets/{dataset.name}/{source.digest[:16]}.json"
            if withdrawn[source.digest] and isinstance(selected, int) and atlas.storage.exists(key):
                n_cells = int(json.loads(atlas.storage.get(key))["cells_in"])
                least += max(0, selected + withdrawn[source.digest] - n_cells)
    return least


def _decided(selected: str, where: str, held: Held) -> bool | None:
    """Return whether a selection has all or none of the cells of a source; None where their values would tell."""
    values = {"dataset": held.dataset, "source_digest": held.source_digest}
    known = {name: Facts(value, value, 0) for name, value in values.items()}
    texts = _equal(parse(where).tree) if not held.known else {}
    try:
        predicate = parse(selected)
        found = {
            decide(predicate, {**{name: Facts(value, value, 0) for name, value in some.items()}, **known})
            for some in _spellings(texts)
        }
    except ConfigError:
        return None
    return found.pop() if len(found) == 1 else None


def _equal(tree: ast.expr) -> dict[str, Any]:
    """Return the columns that have one value in all cells that fulfil a predicate, and these values."""
    match tree:
        case ast.BoolOp(op=ast.And(), values=values):
            return {name: value for one in values for name, value in _equal(one).items()}
        case ast.Compare(left=ast.Name(id=name), ops=[ast.Eq()], comparators=[ast.Constant(value=value)]):
            return {name: value}
    return {}


def _spellings(values: dict[str, Any]) -> list[dict[str, Any]]:
    """Return values as they are, as text, and as numbers: a withdrawal holds for all of these."""
    return [values, {name: str(value) for name, value in values.items()}, {k: _number(v) for k, v in values.items()}]


def _number(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
