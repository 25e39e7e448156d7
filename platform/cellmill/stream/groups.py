"""Groups: the windows that one task reads, as a description that travels to it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cellmill.atlas import Selection, ShardEntry
from cellmill.stream.plan import EpochPlan

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ShardRead:
    """What a group reads of one shard.

    Attributes
    ----------
    entry
        The shard.
    rows : int64 [n]
        Rows, ascending.
    place : int64 [n]
        Position of each cell in the group.
    labels : int32 [n] each
        Codes of classes.
    """

    entry: ShardEntry
    rows: I64
    place: I64
    labels: dict[str, npt.NDArray[np.int32]]


@dataclass(frozen=True)
class Group:
    """Windows of a rank's lanes that are read at once.

    Attributes
    ----------
    epoch, index
        Identity: which epoch, and which group of it.
    lane_cells : int64 [n_lanes]
        Cells of each of the rank's lanes, which stand one lane after the other.
    reads
        By shard.
    """

    epoch: int
    index: int
    lane_cells: I64
    reads: tuple[ShardRead, ...]

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return int(self.lane_cells.sum())


class Grouping:
    """How a rank's part of an epoch falls into groups.

    Parameters
    ----------
    selection
        The cells.
    labels
        Codes of each label, an array a shard.
    plan
        The order of the epoch.
    epoch
        Its number.
    lanes
        Lanes of the rank.
    group_cells
        Cells of a group, about.
    """

    def __init__(
        self,
        selection: Selection,
        labels: dict[str, list[npt.NDArray[np.int32]]],
        plan: EpochPlan,
        epoch: int,
        lanes: list[int],
        group_cells: int,
    ) -> None:
        self._selection, self._labels, self._plan = selection, labels, plan
        self._epoch, self._lanes = epoch, lanes
        self.windows = max(1, group_cells // (plan.window * max(1, len(lanes))))
        most = max((plan.n_windows(lane) for lane in lanes), default=0)
        self.n_groups = -(-most // self.windows)

    @property
    def lane_cells(self) -> int:
        """Cells that a full group takes from each lane."""
        return self.windows * self._plan.window

    def group(self, index: int) -> Group:
        """Return a group's description."""
        parts, lane_cells = [], []
        at = 0
        for lane in self._lanes:
            begin = at
            last = min((index + 1) * self.windows, self._plan.n_windows(lane))
            for window in range(index * self.windows, last):
                pieces = self._plan.pieces(lane, window)
                n = sum(piece.stop - piece.start for piece in pieces)
                place = np.empty(n, np.int64)
                place[self._plan.shuffle(lane, window, n)] = np.arange(at, at + n)
                done = 0
                for piece in pieces:
                    size = piece.stop - piece.start
                    parts.append((piece.shard, np.arange(piece.start, piece.stop), place[done : done + size]))
                    done += size
                at += n
            lane_cells.append(at - begin)
        return Group(self._epoch, index, np.array(lane_cells, np.int64), tuple(self._reads(parts)))

    def _reads(self, parts: list[tuple[int, I64, I64]]) -> Iterator[ShardRead]:
        for shard in sorted({part[0] for part in parts}):
            mine = [part for part in parts if part[0] == shard]
            selected = np.concatenate([part[1] for part in mine])
            place = np.concatenate([part[2] for part in mine])
            order = np.argsort(selected)
            selected, place = selected[order], place[order]
            rows = self._selection.rows(shard)
            yield ShardRead(
                entry=self._selection.shards[shard],
                rows=selected if rows is None else rows[selected].astype(np.int64),
                place=place,
                labels={name: codes[shard][selected] for name, codes in self._labels.items()},
            )
