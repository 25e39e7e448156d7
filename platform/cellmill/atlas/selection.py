"""A selection: the cells of a snapshot that fulfil a predicate, shard by shard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cellmill.atlas.cells import unify
from cellmill.atlas.entry import ShardEntry
from cellmill.atlas.row_set import RowSet
from cellmill.atlas.summary import facts
from cellmill.lineage import Lineage

if TYPE_CHECKING:
    from cellmill.atlas.snapshot import Snapshot


class Selection:
    """Cells of a snapshot. Get one with `Snapshot.select`.

    Attributes
    ----------
    snapshot, where
        What was selected from, and by which predicate (None for all).
    shards
        Shards with at least one selected cell, in the snapshot's order.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        where: str | None,
        shards: tuple[ShardEntry, ...],
        rows: tuple[RowSet | None, ...],
    ) -> None:
        self.snapshot = snapshot
        self.where = where
        self.shards = shards
        self._rows = rows

    def __repr__(self) -> str:
        return f"Selection({self.snapshot.name}, where={self.where!r}, {self.n_cells:,} cells)"

    def rows(self, i: int) -> npt.NDArray[np.uint32] | None:
        """Return the selected rows of the i-th shard, ascending; None stands for all rows.

        They are kept packed, and made when asked for.
        """
        found = self._rows[i]
        return None if found is None else found.rows()

    @cached_property
    def counts(self) -> npt.NDArray[np.int64]:
        """Number of selected cells in each shard: int64[n_shards], read-only."""
        pairs = zip(self.shards, self._rows, strict=True)
        found = np.array([entry.n_rows if rows is None else rows.n for entry, rows in pairs], dtype=np.int64)
        found.flags.writeable = False
        return found

    @property
    def n_cells(self) -> int:
        """Number of selected cells."""
        return int(self.counts.sum())

    def cells(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the cells' metadata, ordered by shard, then row.

        Raises
        ------
        ConfigError
            A column does not exist.
        """
        names = list(self.snapshot.columns) if columns is None else list(columns)
        self.snapshot.check_columns(names)
        tables = self._tables(names)
        if not tables:
            return pa.schema([(name, self.snapshot.columns[name]) for name in names]).empty_table()
        return unify(tables).combine_chunks()

    def of_shards(self, places: Sequence[int]) -> Selection:
        """Return the selected cells of some of the shards."""
        shards, rows = tuple(self.shards[i] for i in places), tuple(self._rows[i] for i in places)
        return Selection(self.snapshot, self.where, shards, rows)

    def head(self, columns: Sequence[str], limit: int) -> pa.Table:
        """Return the metadata of the first cells, without looking at more shards than these are in.

        Raises
        ------
        ConfigError
            A column does not exist.
        """
        self.snapshot.check_columns(columns)
        last = int(np.searchsorted(np.cumsum(self.counts), limit))
        some = Selection(self.snapshot, self.where, self.shards[: last + 1], self._rows[: last + 1])
        return some.cells(columns).slice(0, limit)

    def most_features(self) -> int:
        """Return the largest number of features, of all modalities, of a selected cell.

        The catalog tells it of whole shards; of others, those are read that may have more.
        """
        pairs = list(zip(self.shards, self._rows, strict=True))
        most = max((entry.max_features for entry, rows in pairs if rows is None), default=0)
        others = [entry for entry, rows in pairs if rows is not None and entry.max_features > most]

        def largest(entry: ShardEntry) -> int:
            return int(self._table(entry, ["n_features"]).column(0).to_numpy().max(initial=0))

        return max(most, *self.snapshot.stream(largest, others)) if others else most

    def value_counts(self, name: str) -> dict[Any, int]:
        """Return how many cells have each value of a column, the most frequent first; None for those without one.

        Memory holds the column of a few shards at a time; where the catalog tells that a shard has one value, not even
        that.

        Raises
        ------
        ConfigError
            The column does not exist.
        """
        self.snapshot.check_columns([name])

        total: Counter[Any] = Counter()
        others = []
        for entry, n in zip(self.shards, self.counts.tolist(), strict=True):
            known = facts(entry, [name]).get(name)
            if known is not None and known.is_constant:
                total[known.least] += n
            else:
                others.append(entry)

        def count(entry: ShardEntry) -> list[tuple[Any, int]]:
            found = pc.value_counts(self._table(entry, [name]).column(0))
            return [(item["values"].as_py(), item["counts"].as_py()) for item in found]

        for pairs in self.snapshot.stream(count, others):
            for value, n in pairs:
                total[value] += n
        return dict(total.most_common())

    def table(self, i: int, columns: Sequence[str], cells: npt.NDArray[np.int64] | None = None) -> pa.Table:
        """Return columns of the selected cells of the i-th shard, aligned with `rows`.

        Parameters
        ----------
        i
            Which shard.
        columns
            Which columns.
        cells : int64 [n], optional
            Of which of its selected cells, by their positions; all by default. What is far from them is not read.
        """
        if cells is None:
            return self._table(self.shards[i], list(columns))
        rows = self.rows(i)
        chosen = cells if rows is None else rows[cells].astype(np.int64)
        return self.snapshot.shard_cells(self.shards[i], list(columns), chosen)

    def column(self, name: str) -> list[npt.NDArray[Any]]:
        """Return one column of the metadata, an array a shard, aligned with `rows`.

        Text comes as objects (None where it is missing), numbers as numbers (NaN where they are missing).

        Raises
        ------
        ConfigError
            The column does not exist.
        """
        self.snapshot.check_columns([name])
        return [table.column(0).to_numpy() for table in self._tables([name])]

    def codes(self, name: str, classes: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        """Return the position of each cell's value among `classes`, an array a shard, -1 where it is none of them.

        Raises
        ------
        ConfigError
            The column does not exist.
        """
        self.snapshot.check_columns([name])
        wanted = pa.array(list(classes), pa.string())
        found = []
        for table in self._tables([name]):
            index = pc.index_in(pc.cast(table.column(0), pa.string()), value_set=wanted)
            found.append(pc.fill_null(index, -1).to_numpy().astype(np.int32))
        return found

    def lineage(self) -> Lineage:
        """Return where the selected cells came from."""
        return self.snapshot.lineage(self)

    def _tables(self, names: list[str]) -> list[pa.Table]:
        return self.snapshot.each(lambda entry: self._table(entry, names), self.shards)

    def _table(self, entry: ShardEntry, names: list[str]) -> pa.Table:
        table = self.snapshot.shard_cells(entry, names)
        rows = self._rows[self._place[entry.key]]
        return table if rows is None else table.take(pa.array(rows.rows()))

    @cached_property
    def _place(self) -> dict[tuple[str, str], int]:
        return {entry.key: i for i, entry in enumerate(self.shards)}
