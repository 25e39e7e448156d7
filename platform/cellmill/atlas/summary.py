"""What the catalog tells of a shard's columns, so that most questions are answered without opening its metadata."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cellmill.atlas.cells import CATALOG, VIRTUAL
from cellmill.atlas.entry import ShardEntry

EXACT = 1 << 53
"""Integers below this are the same as floating-point numbers."""
_LONGEST = 64
_EVERY_CELL_ITS_OWN = frozenset({"cell_id", "barcode", "source_row", "row", "shard", "dataset", "content_hash"})


@dataclass(frozen=True)
class Facts:
    """What is known of a column in one shard.

    Attributes
    ----------
    least, most
        Smallest and largest value; None if all are missing.
    n_missing
        How many are missing, at most.
    """

    least: Any
    most: Any
    n_missing: int

    @property
    def is_constant(self) -> bool:
        """Whether all rows have one value, or none has any."""
        return self.least is None or (self.n_missing == 0 and self.least == self.most)


def summarise(table: pa.Table) -> dict[str, str]:
    """Return the fields of a catalog row that tell of the columns of a shard's metadata.

    These are the types, and of numbers, truth values and short text the smallest and largest value and how many are
    missing. Where rows are taken from a shard its old summary is still true, if less tight.
    """
    types = {item.name: str(item.type) for item in table.schema}
    if any(_type(name) is None for name in types.values()):
        return {"columns": "", "statistics": ""}
    statistics = {}
    for name in table.column_names:
        if name not in _EVERY_CELL_ITS_OWN and (found := _bounds(table.column(name))) is not None:
            statistics[name] = found
    return {
        "columns": json.dumps(types, separators=(",", ":")),
        "statistics": json.dumps(statistics, separators=(",", ":"), ensure_ascii=False),
    }


def column_types(entry: ShardEntry) -> dict[str, pa.DataType] | None:
    """Return the columns of a shard's metadata, None if the catalog does not tell."""
    return _column_types(entry.columns) if entry.columns else None


def facts(entry: ShardEntry, names: Iterable[str]) -> dict[str, Facts]:
    """Return what the catalog knows of some columns of a shard; one of which nothing is known is left out."""
    n = entry.n_rows
    known = {"shard": Facts(entry.digest, entry.digest, 0), "row": Facts(0, n - 1, 0)}
    known |= {name: _over_sources(entry, name) for name in ("dataset", *CATALOG)}
    if not entry.overlay:
        known["is_duplicate"] = Facts(False, False, 0)
    # Of a column that is text here and numbers in a source, the bounds of the text say nothing of the numbers.
    untold = {name for part in entry.sources for name in part.types} if entry.parts else set()
    missing = [name for name in names if name not in known and name not in VIRTUAL and name not in untold]
    if missing and (types := column_types(entry)) is not None:
        told = json.loads(entry.statistics)
        for name in missing:
            if name not in types:
                known[name] = Facts(None, None, n)
            elif name in told:
                known[name] = Facts(*told[name])
    return {name: known[name] for name in names if name in known}


def _over_sources(entry: ShardEntry, name: str) -> Facts:
    if not entry.parts:
        value = getattr(entry, name) or None
        return Facts(value, value, 0 if value else entry.n_rows)
    values = [(getattr(part, name) or None, part.n_rows) for part in entry.sources]
    there = [value for value, _ in values if value is not None]
    return Facts(min(there, default=None), max(there, default=None), sum(n for value, n in values if value is None))


@lru_cache(maxsize=4096)
def _column_types(columns: str) -> dict[str, pa.DataType]:
    return {name: _type(kind) for name, kind in json.loads(columns).items()}


def _type(name: str) -> pa.DataType | None:
    if name.startswith("fixed_size_binary["):
        return pa.binary(int(name[len("fixed_size_binary[") : -1]))
    try:
        return pa.type_for_alias(name)
    except ValueError:
        return None


def _bounds(column: pa.ChunkedArray) -> list[Any] | None:
    """Return the smallest and largest value and how many are missing, None where that cannot be told."""
    kind = column.type
    if column.null_count == len(column):
        return [None, None, len(column)]
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if pa.types.is_floating(kind):
        # Comparisons with what is not a number are false, which bounds do not tell.
        if pc.any(pc.is_nan(column)).as_py():
            return None
    elif not (is_text or pa.types.is_boolean(kind) or pa.types.is_integer(kind)):
        return None
    found = pc.min_max(column).as_py()
    least, most = found["min"], found["max"]
    if is_text and max(len(least), len(most)) > _LONGEST:
        return None
    if pa.types.is_integer(kind) and max(-least, most) >= EXACT:
        return None
    return [least, most, column.null_count]
