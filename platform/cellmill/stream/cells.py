"""The cells of a stream: which rows of which shards an epoch's pieces are, with their ids and labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cellmill.atlas import Selection, ShardEntry
from cellmill.range_cache import CachedStorage
from cellmill.storage import Storage
from cellmill.stream.draws import Drawn, Draws, make_draws
from cellmill.stream.kept import Kept
from cellmill.stream.runs import Pieces
from cellmill.stream.sampling import Sampling
from cellmill.stream.shard_columns import Labels, ShardColumns, read_columns

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

_COLUMN_BYTES = 1 << 29
"""Columns that a process keeps: with one label, those of 26 million cells. Of more cells, none are kept."""
_DRAWN_BYTES = 1 << 28


@dataclass(frozen=True)
class RowRuns:
    """Rows of one shard to be read.

    Attributes
    ----------
    entry
        The shard.
    starts, stops : int64 [k]
        Rows ``starts[i]`` up to, not including, ``stops[i]``, ascending.
    """

    entry: ShardEntry
    starts: I64
    stops: I64

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return int((self.stops - self.starts).sum())


@dataclass(frozen=True)
class Reading:
    """Rows to be read for some pieces, shard by shard.

    Attributes
    ----------
    storage
        Of the atlas.
    shards
        The rows of each.
    cell_id, labels
        Of the rows, in the order they are read.
    """

    storage: Storage
    shards: tuple[RowRuns, ...]
    cell_id: U64
    labels: dict[str, I32]


@dataclass(frozen=True)
class PieceCells:
    """The cells of some pieces.

    Attributes
    ----------
    reading
        What must be read for them.
    row : int64 [n]
        Place among the rows read of each cell, piece after piece.
    copies : int64 [n] or None
        How often each cell came before in the epoch; None where no cell comes twice.
    """

    reading: Reading
    row: I64
    copies: I64 | None


class SelectedCells:
    """The cells of a selection as an epoch draws them; their columns are read when they are needed.

    Parameters
    ----------
    selection
        Of a snapshot.
    labels
        Columns that travel with the cells, as codes of their classes; -1 for a value that is none of them.
    sampling, seed
        Which cells an epoch draws; every cell once by default.
    cache_gb
        Bound on what of remote shards is kept on this machine's disk.

    Raises
    ------
    ConfigError
        A column does not exist, or no cell can be drawn.
    """

    def __init__(
        self, selection: Selection, labels: Labels, sampling: Sampling | None, seed: int, cache_gb: float = 0
    ) -> None:
        selection.snapshot.check_columns([column for column, _ in labels.values()])
        self._draws = None if sampling is None else make_draws(selection, sampling, seed)
        self._selection = selection
        storage = selection.snapshot.atlas.storage
        self._storage = CachedStorage(storage.url, cache_gb) if cache_gb else storage
        self._labels = labels
        self._columns: Kept[int, ShardColumns] = Kept(_COLUMN_BYTES)
        self._keeps = selection.n_cells * (16 + 4 * len(labels)) <= _COLUMN_BYTES
        self._drawn: Kept[tuple[int, int], Drawn] = Kept(_DRAWN_BYTES)

    @property
    def unit(self) -> int:
        """Cells that are drawn together and stay together: those of a set, else 1."""
        return 1 if self._draws is None else self._draws.size

    @property
    def left_out(self) -> int:
        """Selected cells that are never drawn."""
        return 0 if self._draws is None else self._draws.left_out

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the labels."""
        return tuple(self._labels)

    @property
    def unlabelled(self) -> dict[str, int]:
        """Selected cells without a class, by label; all of their columns are read."""
        counts = dict.fromkeys(self._labels, 0)
        for shard in range(len(self._selection.shards)):
            for name, codes in self._column(shard).labels.items():
                counts[name] += int((codes < 0).sum())
        return counts

    def units(self, epoch: int) -> tuple[I64, I64]:
        """Return the shards that an epoch draws from, and the units of each: int64 [k] both."""
        units = self._selection.counts if self._draws is None else self._draws.units(epoch)
        present = np.flatnonzero(units)
        return present, units[present]

    def pieces(self, pieces: Pieces, epoch: int) -> PieceCells:
        """Return the cells of pieces, whose shards are numbered as in `units` and whose ranges count units."""
        present, _ = self.units(epoch)
        mine = Pieces(present[pieces.shard], pieces.begin, pieces.length)
        return self._in_order(mine) if self._draws is None else self._by_draw(mine, self._draws, epoch)

    def _in_order(self, pieces: Pieces) -> PieceCells:
        """Return the cells of pieces of which no two overlap."""
        order = np.lexsort((pieces.begin, pieces.shard))
        shard, begin, length = pieces.shard[order], pieces.begin[order], pieces.length[order]
        read_at = np.concatenate([[0], np.cumsum(length)])[:-1]
        at = np.empty_like(read_at)
        at[order] = read_at
        found, first = np.unique(shard, return_index=True)
        bounds = [*first.tolist(), shard.size]
        wanted = [
            (int(found[i]), ranges(begin[bounds[i] : bounds[i + 1]], length[bounds[i] : bounds[i + 1]]))
            for i in range(found.size)
        ]
        return PieceCells(self._reading(wanted), ranges(at, pieces.length), None)

    def _by_draw(self, pieces: Pieces, draws: Draws, epoch: int) -> PieceCells:
        """Return the cells of pieces of drawn lists, in which cells stand in any order, perhaps several times."""
        length = pieces.length * draws.size
        out = np.cumsum(length) - length
        row, copies = np.empty(int(length.sum()), np.int64), np.empty(int(length.sum()), np.int64)
        wanted: list[tuple[int, I64]] = []
        read = 0
        for shard in np.unique(pieces.shard).tolist():
            found = self._draw(draws, shard, epoch)
            mine = pieces.shard == shard
            index = ranges(pieces.begin[mine] * draws.size, length[mine])
            place = ranges(out[mine], length[mine])
            cells, inverse = np.unique(found.cells[index], return_inverse=True)
            row[place] = read + inverse
            copies[place] = found.copies[index]
            wanted.append((shard, cells))
            read += cells.size
        return PieceCells(self._reading(wanted), row, copies)

    def _reading(self, wanted: list[tuple[int, I64]]) -> Reading:
        """Return what must be read for ascending positions among the selected cells of shards."""
        shards = self._selection.shards
        if self._keeps:
            found = [self._column(shard).take(cells) for shard, cells in wanted]
        else:
            # Runs of an epoch over many shards are far apart: what is beside them is not needed soon.
            place = {shards[shard].key: (shard, cells) for shard, cells in wanted}
            found = self._selection.snapshot.each(
                lambda entry: read_columns(self._selection, place[entry.key][0], self._labels, place[entry.key][1]),
                [shards[shard] for shard, _ in wanted],
            )
        return Reading(
            storage=self._storage,
            shards=tuple(_runs(shards[shard], part.rows) for (shard, _), part in zip(wanted, found, strict=True)),
            cell_id=np.concatenate([part.cell_id for part in found]),
            labels={name: np.concatenate([part.labels[name] for part in found]) for name in self._labels},
        )

    def _column(self, shard: int) -> ShardColumns:
        def make() -> ShardColumns:
            return read_columns(self._selection, shard, self._labels)

        return self._columns.get(shard, make) if self._keeps else make()

    def _draw(self, draws: Draws, shard: int, epoch: int) -> Drawn:
        return self._drawn.get((shard, epoch), lambda: draws.draw(shard, epoch))


def ranges(begin: I64, length: I64) -> I64:
    """Return the numbers from ``begin[i]`` on, ``length[i]`` of them, one range after the other: int64 [sum]."""
    ends = np.cumsum(length)
    shift: I64 = np.repeat(begin - (ends - length), length)
    return shift + np.arange(shift.size)


def _runs(entry: ShardEntry, rows: I64) -> RowRuns:
    """Return ascending rows as runs."""
    apart = np.flatnonzero(np.diff(rows) != 1)
    return RowRuns(
        entry,
        np.concatenate([rows[:1], rows[apart + 1]]),
        np.concatenate([rows[apart], rows[-1:]]) + 1,
    )
