"""The walk forward: from cells to the runs, models and answers that saw them.

Whether a model saw a data set or a file is in its lineage, which names what its selection held. Whether it saw the
cells of a predicate is found by asking the very snapshot it was trained on, by the very selection. A snapshot that was
forgotten is remembered by how many cells of each source the withdrawals took from it. Where that does not tell either,
the answer is that it is not known. A name that nothing here knows gets no answer.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cellmill.atlas import Atlas, Snapshot
from cellmill.atlas.forgotten import Forgotten, Held, find_forgotten
from cellmill.atlas.standing import Standing
from cellmill.atlas.withdrawals import all_withdrawals
from cellmill.config import Config
from cellmill.digest import digest_of_file
from cellmill.errors import AtlasError, CellmillError, ConfigError, SourceError
from cellmill.known import folders, is_digest, is_in_an_atlas
from cellmill.lineage import Lineage, read_lineage
from cellmill.models import find_models
from cellmill.remembered import bounds, least_by_files
from cellmill.stamps import read_stamp

Answer = Literal["yes", "no", "unknown"]
_LARGEST_JSON = 64 << 20
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")
_OURS = frozenset(
    {
        "lineage.json",
        "manifest.json",
        "config.json",
        "labels.json",
        "metrics.json",
        "preprocessing.json",
        "summary.json",
    }
)
"""Files of runs and models, which are no answers."""


class Sighting(Config):
    """One thing, and whether it saw the cells.

    Attributes
    ----------
    kind, name, digest, location
        What it is.
    saw
        ``unknown`` where it cannot be known any more.
    cells
        How many of the cells it saw, at least; None where that is not known.
    why
        What the answer rests on.
    """

    kind: Literal["run", "model", "prediction"]
    name: str
    digest: str
    location: str
    saw: Answer
    cells: int | None
    why: str


class Forward(Config):
    """What saw some cells.

    Attributes
    ----------
    what
        The cells, in words.
    found
        Everything that was looked at, in order of its path.
    """

    what: str
    found: tuple[Sighting, ...]

    def those(self, saw: Answer) -> tuple[Sighting, ...]:
        """Return the things with one answer."""
        return tuple(sighting for sighting in self.found if sighting.saw == saw)


@dataclass(frozen=True)
class _Verdict:
    saw: Answer
    cells: int | None = None
    why: str = ""


@dataclass(frozen=True)
class Cells:
    """Some cells, and how to tell whether a thing with a given lineage saw them.

    Attributes
    ----------
    what
        The cells, in words.
    judge
        Returns the verdicts for a lineage.
    name
        What somebody called them, where nothing but the name tells that there are such cells.
    """

    what: str
    judge: Callable[[Lineage], list[_Verdict]]
    name: str | None = None


def forward(thing: str, root: Path, where: str | None = None) -> Forward:
    """Find the runs, models and answers below a folder that saw some cells.

    Parameters
    ----------
    thing
        Name of a data set; path, URL or digest (or its beginning) of a source file; ``ATLAS@SNAPSHOT``; ``ATLAS#N``
        for a withdrawal; with `where` the atlas.
    root
        Folder to search.
    where
        A predicate over the cells of the atlas.

    Raises
    ------
    AtlasError, ConfigError
        There is no such atlas, snapshot or withdrawal, the predicate is not well-formed, or a predicate was given
        without its atlas.
    SourceError
        No lineage below the folder and no atlas knows a data set or source of this name.
    """
    cells = _cells(thing, where)
    lineages: list[Lineage] = []
    found: list[Sighting] = []
    models: dict[str, _Verdict] = {}
    for entry in find_models(root):
        try:
            made = read_lineage(entry.path / "lineage.json")
        except SourceError as error:
            models[entry.digest] = _Verdict("unknown", None, error.what)
        else:
            lineages.append(made)
            models[entry.digest] = _judge(cells, made)
        location = str(entry.path.absolute())
        found.append(_sighting("model", entry.name, entry.digest, location, models[entry.digest]))
    for path, node in _runs(root):
        lineages.append(node)
        found.append(_sighting("run", node.name, node.digest, str(path.absolute()), _judge(cells, node)))
    for path, digest in _answers(root):
        verdict = models.get(digest, _Verdict("unknown", None, f"its model {digest[:16]} is not below {root}"))
        found.append(_sighting("prediction", path.name, digest, str(path.absolute()), verdict))
    if cells.name is not None and found and not any(one.saw == "yes" for one in found):
        _check_known(cells.name, lineages, root)
    return Forward(what=cells.what, found=tuple(sorted(found, key=lambda one: (one.location, one.kind))))


def _check_known(name: str, lineages: list[Lineage], root: Path) -> None:
    if not is_in_an_atlas(name, lineages, root):
        raise SourceError(
            f"No lineage and no atlas knows a data set or source {name!r}.",
            where=f"searched below {root.absolute()}, and in the atlases of the lineages there",
            fix="Give its name as `cellmill atlas show` has it, the path or the whole digest of a source file, or an "
            "atlas and --where. --root widens the search.",
        )


def _cells(thing: str, where: str | None) -> Cells:
    if where is not None:
        atlas = Atlas.open(thing)
        return _by_predicate(atlas, where)
    if _is_predicate(thing) and not os.path.exists(thing):
        raise ConfigError(
            "A predicate chooses cells of an atlas, and none is given.",
            where=thing,
            fix=f"cellmill lineage --forward ATLAS -w {shlex.quote(thing)}",
        )
    url, mark, number = thing.rpartition("#")
    if mark and number.isdecimal():
        atlas = Atlas.open(url)
        for withdrawal, _ in all_withdrawals(atlas.storage):
            if withdrawal.number == int(number):
                return _by_predicate(atlas, withdrawal.where)
        raise AtlasError(f"There is no withdrawal {number}.", where=url, fix="`cellmill atlas show` lists them.")
    head, slash, last = thing.rpartition("/")
    name, mark, version = last.partition("@")
    url = f"{head}{slash}{name}"
    if mark and ("://" in url or (Path(url) / "atlas.json").exists()):
        digest = Atlas.open(url).snapshot(version).name
        return Cells(f"snapshot {digest}", lambda tree: _named(tree, lambda node: node.digest == digest, "snapshot"))
    if (Path(thing) / "atlas.json").exists():
        atlas_id = Atlas.open(thing).id
        return Cells(
            f"any snapshot of {thing}",
            lambda tree: _named(tree, lambda node: node.digest.startswith(f"{atlas_id}@"), "snapshot"),
        )
    if Path(thing).is_file():
        content = digest_of_file(Path(thing))
        return Cells(f"source file {thing} ({content[:16]})", lambda tree: _by_name(tree, thing, content))
    called = None if _DIGEST.fullmatch(thing) else thing
    return Cells(f"data set or source {thing!r}", lambda tree: _by_name(tree, thing, thing), called)


def _is_predicate(thing: str) -> bool:
    """Return whether a text is a predicate, and more than a word, which may be a name."""
    from cellmill.atlas.predicate import parse

    try:
        return not isinstance(parse(thing).tree, (ast.Name, ast.Constant))
    except ConfigError:
        return False


def _by_name(tree: Lineage, name: str, digest: str) -> list[_Verdict]:
    def matches(node: Lineage) -> bool:
        if node.kind == "dataset":
            return node.name == name
        return node.kind == "source" and (is_digest(digest, node.digest) or node.location == name)

    return _named(tree, matches, "dataset", "source")


def _named(tree: Lineage, matches: Callable[[Lineage], bool], *kinds: str) -> list[_Verdict]:
    found = [node for node in tree.walk() if node.kind in kinds and matches(node)]
    verdicts = [_Verdict("yes", _count(node), f"its lineage names {node.kind} {node.name}") for node in found]
    return verdicts or [_Verdict("no", None, "its lineage does not name it")]


def _count(node: Lineage) -> int | None:
    cells = node.facts.get("cells")
    return cells if isinstance(cells, int) else None


def _by_predicate(atlas: Atlas, where: str) -> Cells:
    from cellmill.atlas.predicate import parse

    parse(where)

    def judge(tree: Lineage) -> list[_Verdict]:
        return [_ask(atlas, node, where) for node in tree.walk() if node.kind == "snapshot"]

    return Cells(f"cells of {atlas.url} with {where}", judge)


def _ask(atlas: Atlas, node: Lineage, where: str) -> _Verdict:
    """Ask the snapshot that a thing was made from whether its selection held such cells."""
    atlas_id, _, version = node.digest.partition("@")
    if atlas_id != atlas.id:
        try:
            other = Atlas.open(node.location)
        except CellmillError:
            return _Verdict("unknown", None, f"the atlas {node.location} cannot be opened")
        if other.id != atlas_id:
            return _Verdict("unknown", None, f"{node.location} is another atlas by now")
        atlas = other
    selected = node.facts.get("where")
    selected = selected if isinstance(selected, str) else None
    name = f"snapshot {version} of {atlas.url}"
    chosen = f"{name}, {selected}" if selected else name
    withdrawals = atlas.withdrawals(atlas.snapshot().version, lifted=True)
    same = [one for one in withdrawals if one.withdrawal.where == where]
    try:
        record = find_forgotten(atlas.storage, int(version))
        if record is not None:
            numbers = {one.number for one in same} & set(record.told)
            if not numbers:
                return _older(record, least_by_files(atlas, node, same), name)
            held = [one for one in record.held if one.withdrawal == max(numbers)]
            return _remembered(held, bounds(held, node, selected, where), chosen)
        cells, known = _count_in(atlas.snapshot(int(version)), selected, where, same)
    except ConfigError as error:
        return _Verdict("unknown", None, f"{name} cannot tell: {error.what}")
    except CellmillError as error:
        return _Verdict("unknown", None, f"{name} cannot be asked: {error.what}")
    if cells:
        so = f" ({known:,} of them by what other snapshots say of the same cells)" if known else ""
        return _Verdict("yes", cells, f"it was made from {cells:,} of them{so}: {chosen}")
    return _Verdict("no", None, f"none of them was selected: {chosen}")


def _count_in(snapshot: Snapshot, selected: str | None, where: str, withdrawals: Sequence[Standing]) -> tuple[int, int]:
    """Return how many of the cells a selection held, and how many of these the predicate alone does not tell.

    Raises
    ------
    ConfigError
        The snapshot has no such column, and nothing else tells.
    """
    chosen = snapshot.select(selected)
    known = 0
    for place, entry in enumerate(chosen.shards):
        found = [one.rows(snapshot.atlas.storage, entry).known for one in withdrawals]
        if found:
            rows, mask = chosen.rows(place), np.logical_or.reduce(found)
            known += int(mask.sum() if rows is None else mask[rows].sum())
    try:
        return snapshot.select(f"({selected}) and ({where})" if selected else where).n_cells + known, known
    except ConfigError:
        if known:
            return known, known
        raise


def _remembered(held: Sequence[Held], bounds: tuple[int, int], chosen: str) -> _Verdict:
    """Say what can still be said of a snapshot that was forgotten after the withdrawal."""
    least, most = bounds
    if not held:
        return _Verdict("no", None, f"it held none of them: {chosen}, which is forgotten")
    n = f"{sum(one.told + one.known for one in held):,}"
    if not most:
        return _Verdict("no", None, f"none of the {n} that it held was selected: {chosen}, which is forgotten")
    if not least:
        return _Verdict("unknown", None, f"at most {most:,} of {n} were selected: {chosen}, which is forgotten")
    exactly = "" if least == most else "at least "
    return _Verdict("yes", least, f"it was made from {exactly}{least:,} of {n}: {chosen}, which is forgotten")


def _older(record: Forgotten, least: int, name: str) -> _Verdict:
    """Say what can be said of a snapshot that was forgotten before the withdrawal."""
    when = f"{name} was forgotten at {record.time}, before it was asked for them"
    if least:
        return _Verdict("yes", least, f"so many of their files' cells were selected that {least:,} were among: {when}")
    return _Verdict("unknown", None, when)


def _judge(cells: Cells, tree: Lineage) -> _Verdict:
    verdicts = cells.judge(tree)
    if any(node.kind in ("run", "model") and not node.parents for node in tree.walk()):
        verdicts.append(_Verdict("unknown", None, "its lineage ends before it reaches an atlas"))
    for saw in ("yes", "unknown"):
        those = [verdict for verdict in verdicts if verdict.saw == saw]
        if those:
            counts = [verdict.cells for verdict in those if verdict.cells is not None]
            # The same cells may have been seen in several trainings.
            return _Verdict(those[0].saw, max(counts) if counts else None, "; ".join(verdict.why for verdict in those))
    return verdicts[0] if verdicts else _Verdict("unknown", None, "its lineage names no snapshot")


def _sighting(kind: Any, name: str, digest: str, location: str, verdict: _Verdict) -> Sighting:
    return Sighting(
        kind=kind, name=name, digest=digest, location=location, saw=verdict.saw, cells=verdict.cells, why=verdict.why
    )


def _runs(root: Path) -> Iterator[tuple[Path, Lineage]]:
    """Yield runs that trained: ingestions have a lineage, too, but saw nothing."""
    for folder, files in folders(root):
        if "lineage.json" in files and "manifest.json" not in files:
            try:
                node = read_lineage(folder / "lineage.json")
            except SourceError:
                continue
            if node.kind == "run":
                yield folder, node


def _answers(root: Path) -> Iterator[tuple[Path, str]]:
    for folder, files in folders(root):
        for name in files:
            path = folder / name
            if name in _OURS or not (path.suffix == ".h5ad" or _may_be_answer(path)):
                continue
            try:
                digest = read_stamp(path).get("model_digest")
            except (SourceError, OSError, UnicodeDecodeError):
                continue
            if isinstance(digest, str) and digest:
                yield path, digest


def _may_be_answer(path: Path) -> bool:
    try:
        if path.suffix != ".json" or path.stat().st_size > _LARGEST_JSON:
            return False
        return b'"model_digest"' in path.read_bytes()
    except OSError:
        return False
