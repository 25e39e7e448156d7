"""A snapshot: the shards of an atlas at one version, and their cells."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cellmill.atlas.cells import CATALOG, FIXED, VIRTUAL, CellsFile, unify
from cellmill.atlas.entry import ShardEntry
from cellmill.atlas.matching import mask_of
from cellmill.atlas.overlay import read_overlay
from cellmill.atlas.part import decode_parts
from cellmill.atlas.predicate import Predicate, kind, parse
from cellmill.atlas.pruning import decide
from cellmill.atlas.row_set import RowSet
from cellmill.atlas.summary import column_types, facts
from cellmill.errors import ConfigError
from cellmill.lineage import Lineage

if TYPE_CHECKING:
    from cellmill.atlas.atlas import Atlas
    from cellmill.atlas.selection import Selection

T = TypeVar("T")
_THREADS = 8
_REMOTE_THREADS = 32
_NO_ROWS = RowSet(np.zeros(0, bool))


class Snapshot:
    """One version of an atlas; it never changes.

    Attributes
    ----------
    atlas, version
        Which version of which atlas.
    shards
        Its shards, sorted by data set and digest.
    """

    def __init__(self, atlas: Atlas, version: int, shards: tuple[ShardEntry, ...]) -> None:
        self.atlas = atlas
        self.version = version
        self.shards = shards

    def __repr__(self) -> str:
        return f"Snapshot({self.atlas.url!r}, version={self.version}, {self.n_cells:,} cells)"

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return sum(entry.n_cells for entry in self.shards)

    @property
    def name(self) -> str:
        """Identity: the atlas's id and the version."""
        return f"{self.atlas.id}@{self.version}"

    @cached_property
    def columns(self) -> dict[str, pa.DataType]:
        """Columns of the cells' metadata over all shards, with the first type met; those of several kinds are text."""
        text = dict.fromkeys(self.mixed, pa.string())
        return {name: next(iter(types)) for name, types in self._all_types.items()} | text

    @cached_property
    def mixed(self) -> dict[str, frozenset[str]]:
        """Columns that are of several kinds over the shards, and these, see `cellmill.atlas.predicate`."""
        kinds = {name: frozenset(map(kind, types)) - {"null"} for name, types in self._all_types.items()}
        return {name: some for name, some in kinds.items() if len(some) > 1}

    @cached_property
    def _all_types(self) -> dict[str, dict[pa.DataType, None]]:
        """Types of the columns, in the order of the shards."""
        found: dict[str, dict[pa.DataType, None]] = {item.name: {item.type: None} for item in FIXED}
        # Most shards are like others, and the catalog tells the columns of most.
        alike = {entry.columns or entry.key: entry for entry in reversed(self.shards)}
        for types in self.each(self._types, sorted(alike.values(), key=lambda entry: entry.key)):
            for name, one in types.items():
                found.setdefault(name, {})[one] = None
        # Text of a compacted shard may be numbers elsewhere: what its sources have counts.
        for text in {entry.parts for entry in self.shards if entry.parts}:
            for part in decode_parts(text):
                for name, kind_of in part.types.items():
                    found.setdefault(name, {})[pa.type_for_alias(kind_of)] = None
        own = dict.fromkeys(CATALOG, pa.string()) | dict.fromkeys(VIRTUAL, pa.bool_())
        return found | {name: {one: None} for name, one in own.items()}

    def cells(self, columns: Sequence[str] | None = None, where: str | None = None) -> pa.Table:
        """Return the cells' metadata, ordered by shard, then row.

        Parameters
        ----------
        columns
            Names; all by default.
        where
            A predicate, see `cellmill.atlas.predicate`.

        Raises
        ------
        ConfigError
            A column does not exist, or the predicate is not well-formed.
        """
        return self.select(where).cells(columns)

    def select(self, where: str | None = None) -> Selection:
        """Return the cells that fulfil a predicate.

        Raises
        ------
        ConfigError
            The predicate is not well-formed, or a column of it does not exist.
        """
        from cellmill.atlas.selection import Selection

        predicate = parse(where) if where is not None and where.strip() else None
        if predicate is not None:
            predicate.check(self.columns)
        rows = self.matching(predicate)
        counts = [entry.n_rows if found is None else found.n for entry, found in zip(self.shards, rows, strict=True)]
        kept = [i for i, count in enumerate(counts) if count]
        return Selection(
            snapshot=self,
            where=where if predicate is not None else None,
            shards=tuple(self.shards[i] for i in kept),
            rows=tuple(rows[i] for i in kept),
        )

    def matching(self, predicate: Predicate | None) -> list[RowSet | None]:
        """Return the visible rows of each shard that fulfil a predicate, None for all rows of a shard.

        Raises
        ------
        ConfigError
            A column is compared with a value of another kind, see `cellmill.atlas.predicate`.
        """
        predicate = predicate and predicate.over(self.mixed)
        answers = [
            True if predicate is None else decide(predicate, facts(entry, predicate.columns)) for entry in self.shards
        ]
        rows = [None if answer else _NO_ROWS for answer in answers]
        pairs = enumerate(zip(self.shards, answers, strict=True))
        open_ = [i for i, (entry, answer) in pairs if answer is None or (answer and entry.overlay)]
        looked_at = {self.shards[i].key: None if answers[i] else predicate for i in open_}
        found = self.each(lambda entry: self._rows(entry, looked_at[entry.key]), [self.shards[i] for i in open_])
        for i, some in zip(open_, found, strict=True):
            rows[i] = some
        return rows

    def lineage(self, selection: Selection | None = None) -> Lineage:
        """Return where the cells of the snapshot, or of a selection of it, came from."""
        from cellmill.atlas.lineage import snapshot_lineage

        return snapshot_lineage(self, selection)

    def check_columns(self, names: Sequence[str]) -> None:
        """Refuse names of columns that no shard has.

        Raises
        ------
        ConfigError
            Names the column, and the nearest that exists.
        """
        if unknown := [name for name in names if name not in self.columns]:
            quoted = parse(f"`{unknown[0]}` is null")
            quoted.check(self.columns)
            raise ConfigError(f"The cells have no column {unknown[0]!r}.", where=self.atlas.url)

    def cells_file(self, entry: ShardEntry) -> CellsFile:
        """Return the metadata of one shard, opened."""
        return CellsFile(self.atlas.storage, entry)

    def shard_cells(
        self, entry: ShardEntry, columns: Sequence[str], rows: npt.NDArray[np.int64] | None = None
    ) -> pa.Table:
        """Return columns of all or some rows of one shard, also of those that the snapshot hides."""
        stored = [name for name in columns if name not in VIRTUAL]
        table = self.cells_file(entry).read(stored, rows) if stored else None
        if "is_duplicate" in columns:
            mark = np.zeros(entry.n_rows, dtype=bool)
            mark[read_overlay(self.atlas.storage, entry).duplicate] = True
            column = pa.chunked_array([pa.array(mark if rows is None else mark[rows])])
            table = (
                table.append_column("is_duplicate", column) if table is not None else pa.table({"is_duplicate": column})
            )
        return table.select(list(columns)) if table is not None else pa.table({})

    def each(self, function: Callable[[ShardEntry], T], shards: Sequence[ShardEntry]) -> list[T]:
        """Return what a function of a shard gives for each, in order, several at a time."""
        return list(self.stream(function, shards))

    def stream(self, function: Callable[[ShardEntry], T], shards: Sequence[ShardEntry]) -> Iterator[T]:
        """Yield what a function of a shard gives for each, in order; no more than a few results wait to be taken."""
        if len(shards) < 2:
            yield from map(function, shards)
            return
        threads = _THREADS if self.atlas.storage.is_local else _REMOTE_THREADS
        with ThreadPoolExecutor(threads) as pool:
            waiting: deque[Future[T]] = deque()
            for entry in shards:
                waiting.append(pool.submit(function, entry))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _types(self, entry: ShardEntry) -> Mapping[str, pa.DataType]:
        told = column_types(entry)
        return told if told is not None else {item.name: item.type for item in self.cells_file(entry).schema}

    def _rows(self, entry: ShardEntry, predicate: Predicate | None) -> RowSet | None:
        mask = np.ones(entry.n_rows, bool)
        if predicate is not None:
            table = self.shard_cells(entry, predicate.columns)
            mask = mask_of(predicate, self.atlas.storage, entry, table)
        if entry.overlay:
            mask = mask & read_overlay(self.atlas.storage, entry).mask(entry.n_rows)
        return None if mask.all() else RowSet(mask)


__all__ = ["Snapshot", "unify"]
