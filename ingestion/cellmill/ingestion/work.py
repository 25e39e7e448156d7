"""How far an ingestion is, and how long it will take: reading cells is one part of the work, writing them the other."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

_WRITING = 2 / 3
"""Of the time that reading takes; only until this run has written a shard. Measured with plain h5ad on a local disk."""


class Work:
    """Cells done, so that one number tells how much of the time for all of it is over.

    Neither part's share of the time is fixed: text that is gzipped takes long to read, and a slow store long to write.

    Parameters
    ----------
    n_cells
        Cells of all sources.
    clock
        Returns seconds.
    """

    def __init__(self, n_cells: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._n_cells, self._clock = n_cells, clock
        self._start = clock()
        self._reading = _Part(self._start)
        self._writing: _Part | None = None
        self._told = 0

    def read(self, cells: int) -> int:
        """Count cells that were read; returns how many more of all are done."""
        now = self._clock()
        self._reading.add(cells, now)
        if self._reading.done >= self._n_cells:
            self._writing = _Part(now)
        return self._newly_done(now)

    def written(self, cells: int, of: int) -> int:
        """Count cells that were written, of all that will be; returns how many more of all are done."""
        now = self._clock()
        if self._writing is None:
            self._writing = _Part(now)
        self._writing.add(cells / of * self._n_cells, now)
        return self._newly_done(now)

    def left(self) -> float | None:
        """Return how many seconds it will still take, None before anything is known."""
        return self._left(self._clock())

    def _left(self, now: float) -> float | None:
        reading = self._reading.per_cell
        if reading is None:
            return None
        if self._writing is None:
            return self._reading.left(self._n_cells, reading, now) + reading * _WRITING * self._n_cells
        return self._writing.left(self._n_cells, self._writing.per_cell or reading * _WRITING, now)

    def _newly_done(self, now: float) -> int:
        over, left = now - self._start, self._left(now)
        if self._writing is not None and round(self._writing.done) >= self._n_cells:
            share = 1.0
        else:
            share = over / (over + left) if left else 0.0
        # What turned out to take longer than was thought is not taken back.
        newly = max(0, int(self._n_cells * share) - self._told)
        self._told += newly
        return newly


class _Part:
    """Cells done in a part of the work, and how fast of late."""

    def __init__(self, start: float) -> None:
        self.done = 0.0
        self._start = start
        self._marks = deque([(start, 0.0)])

    def add(self, cells: float, now: float) -> None:
        self.done += cells
        self._marks.append((now, self.done))
        # The latter half of the time counts: the first tasks wait for workers, those of an earlier run take no time.
        while len(self._marks) > 2 and self._marks[1][0] <= (self._start + now) / 2:
            self._marks.popleft()

    @property
    def per_cell(self) -> float | None:
        """Seconds for a cell."""
        (then, before), (now, after) = self._marks[0], self._marks[-1]
        return (now - then) / (after - before) if after > before else None

    def left(self, n_cells: int, per_cell: float, now: float) -> float:
        """Return the seconds for the rest, which began at the last mark."""
        return max(0.0, (n_cells - self.done) * per_cell - (now - self._marks[-1][0]))
