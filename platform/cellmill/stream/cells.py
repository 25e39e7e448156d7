"""The selected cells of a stream: where their rows are, their ids and their labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from cellmill.atlas import Selection, ShardEntry
from cellmill.storage import Storage
from cellmill.stream.runs import Pieces

I64 = npt.NDArray[np.int64]
U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]

Labels = Mapping[str, tuple[str, Sequence[str]]]
"""Name of each label, the column it comes from, and its classes."""


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
    row : int64 [n]
        Place among the rows read of each cell of the pieces.
    """

    storage: Storage
    shards: tuple[RowRuns, ...]
    cell_id: U64
    labels: dict[str, npt.NDArray[np.int32]]
    row: I64


class SelectedCells:
    """The cells of a selection, with their ids and labels in memory (12 bytes a cell and one label).

    Parameters
    ----------
    selection
        Of a snapshot.
    labels
        Columns that travel with the cells, as codes of their classes; -1 for a value that is none of them.

    Raises
    ------
    ConfigError
        A column does not exist.
    """

    def __init__(self, selection: Selection, labels: Labels | None = None) -> None:
        self.storage = selection.snapshot.atlas.storage
        self.shards = selection.shards
        self.counts = selection.counts
        self._rows = selection.rows
        self._ids = [np.asarray(ids, dtype=np.uint64) for ids in selection.column("cell_id")]
        self._labels = {
            name: [np.asarray(codes, dtype=np.int32) for codes in selection.codes(column, list(classes))]
            for name, (column, classes) in (labels or {}).items()
        }

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the labels."""
        return tuple(self._labels)

    @property
    def unlabelled(self) -> dict[str, int]:
        """Cells without a class, by label."""
        return {name: sum(int((codes < 0).sum()) for codes in parts) for name, parts in self._labels.items()}

    def reading(self, pieces: Pieces) -> Reading:
        """Return what must be read for some pieces: by shard and row, whatever the order of the pieces."""
        order = np.lexsort((pieces.begin, pieces.shard))
        shard, begin, length = pieces.shard[order], pieces.begin[order], pieces.length[order]
        read_at = np.concatenate([[0], np.cumsum(length)])[:-1]
        at = np.empty_like(read_at)
        at[order] = read_at
        within = np.arange(int(length.sum()), dtype=np.int64)
        within -= np.repeat(np.cumsum(pieces.length) - pieces.length, pieces.length)
        row = np.repeat(at, pieces.length) + within
        found, first = np.unique(shard, return_index=True)
        bounds = [*first.tolist(), shard.size]
        parts = [(int(found[i]), slice(bounds[i], bounds[i + 1])) for i in range(found.size)]
        ranges = [
            (i, [(int(b), int(b + n)) for b, n in zip(begin[part], length[part], strict=True)]) for i, part in parts
        ]
        return Reading(
            storage=self.storage,
            shards=tuple(self._runs(i, spans) for i, spans in ranges),
            cell_id=_collect(self._ids, ranges),
            labels={name: _collect(codes, ranges) for name, codes in self._labels.items()},
            row=row,
        )

    def _runs(self, shard: int, spans: list[tuple[int, int]]) -> RowRuns:
        rows = self._rows(shard)
        if rows is None:
            starts = np.array([start for start, _ in spans], dtype=np.int64)
            stops = np.array([stop for _, stop in spans], dtype=np.int64)
            apart = np.flatnonzero(starts[1:] != stops[:-1])
            return RowRuns(
                self.shards[shard],
                np.concatenate([starts[:1], starts[apart + 1]]),
                np.concatenate([stops[apart], stops[-1:]]),
            )
        wanted = np.concatenate([rows[start:stop] for start, stop in spans]).astype(np.int64)
        apart = np.flatnonzero(np.diff(wanted) != 1)
        return RowRuns(
            self.shards[shard],
            np.concatenate([wanted[:1], wanted[apart + 1]]),
            np.concatenate([wanted[apart], wanted[-1:]]) + 1,
        )


T = TypeVar("T", bound=np.generic)


def _collect(columns: list[npt.NDArray[T]], ranges: list[tuple[int, list[tuple[int, int]]]]) -> npt.NDArray[T]:
    return np.concatenate([columns[shard][start:stop] for shard, spans in ranges for start, stop in spans])
