"""What a group of windows holds, and in which order it hands it out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cellmill.stream import chance
from cellmill.stream.plan import EpochPlan, Windows
from cellmill.stream.runs import Pieces

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class GroupLayout:
    """The cells of a group of windows.

    Attributes
    ----------
    pieces
        Where they are: the cells of the pieces, one after the other, are the group's cells before shuffling.
    cells : int64 [n]
        Which of those cells come out, in the order of (step, window, place of the lane, place in the lane). That
        order does not depend on how windows are grouped: the parts of a step that several groups hold, put one after
        the other, are always the same.
    first_step
        First step that the group has cells of, counted from where the run began.
    offset : int64 [steps + 1]
        Where the cells of each of its steps begin in `cells`.
    """

    pieces: Pieces
    cells: I64
    first_step: int
    offset: I64

    @property
    def last_step(self) -> int:
        """The step after the last that the group has cells of."""
        return self.first_step + self.offset.size - 1


def group_layout(plan: EpochPlan, group: Windows, taken: int = 0) -> GroupLayout:
    """Return the cells of a group of windows that are still to come when each lane has given `taken`."""
    intervals: list[tuple[int, int]] = []
    cells: list[I64] = []
    steps: list[I64] = []
    read = 0
    for window in range(group.first, group.last):
        begin, end = plan.bounds(window), plan.bounds(window + 1)
        start = int(begin.sum()) + np.concatenate([[0], np.cumsum(end - begin)])
        for place in group.places.tolist():
            low, high = int(begin[place]), int(end[place])
            if high <= max(low, taken):
                continue
            shuffle = chance.key(plan.seed, plan.epoch, chance.WINDOW, window, place)
            left = max(low, taken)
            cells.append(read + chance.permutation(shuffle, high - low)[left - low :])
            steps.append((np.arange(left, high, dtype=np.int64) - taken) // plan.share)
            intervals.append((int(start[place]), int(start[place + 1])))
            read += high - low
    step = np.concatenate(steps)
    by_step = np.argsort(step, kind="stable")
    first_step = int(step[by_step[0]])
    counts = np.bincount(step - first_step)
    return GroupLayout(
        pieces=_pieces(plan, intervals),
        cells=np.concatenate(cells)[by_step],
        first_step=first_step,
        offset=np.concatenate([[0], np.cumsum(counts)]),
    )


def _pieces(plan: EpochPlan, intervals: list[tuple[int, int]]) -> Pieces:
    """Look up intervals of the epoch; neighbouring ones are looked up as one, so that runs stay whole."""
    joined: list[tuple[int, int]] = []
    for start, stop in intervals:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    parts = [plan.order.pieces(start, stop) for start, stop in joined]
    return Pieces(
        np.concatenate([part.shard for part in parts]),
        np.concatenate([part.begin for part in parts]),
        np.concatenate([part.length for part in parts]),
    )


def expand(units: I64, size: int) -> I64:
    """Return the cells of units that have `size` cells each: int64 [units * size]."""
    return units if size == 1 else (units[:, None] * size + np.arange(size)).ravel()
