"""Where the counts of a step come together: groups write each cell to its place in its step, and nobody copies it."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cellmill.memory import Memory
from cellmill.stream.reader import Places

Array = npt.NDArray[Any]
I64 = npt.NDArray[np.int64]

_TOGETHER = 8
"""Steps whose memory is taken, and given back, together."""


@dataclass
class _Room:
    """Memory of a step's tokens and counts, and how many entries are in it."""

    token: Array
    count: Array
    filled: int = 0

    def has_place(self, entries: int, types: tuple[np.dtype[Any], ...]) -> bool:
        return (self.token.dtype, self.count.dtype) == types and self.filled + entries <= self.token.size


class Reserved(NamedTuple):
    """Where the entries of a group's cells are to be.

    Attributes
    ----------
    to_tokens, to_counts
        The places of its cells.
    tokens, counts
        The entries of each of its steps.
    """

    to_tokens: Places
    to_counts: Places
    tokens: list[Array]
    counts: list[Array]


class StepRooms:
    """Memory of the steps of an epoch. Safe between threads.

    A step gets a room when its first group comes, as large as its cells are likely to need. Groups that come in turn
    get the place after those before them; to one that comes out of turn, or does not fit, other rooms are given, and
    what a step has in several rooms must be copied into one.

    Parameters
    ----------
    memory
        Where rooms are to be.
    cells
        Cells of a step, at most.
    """

    def __init__(self, memory: Memory, cells: int) -> None:
        self._memory, self._cells = memory, cells
        self._rooms: dict[int, _Room] = {}
        self._size = 0
        self._next = 0
        self._lock = threading.Lock()

    def reserve(
        self, turn: int, first_step: int, bounds: I64, lengths: I64, types: tuple[np.dtype[Any], np.dtype[Any]]
    ) -> Reserved:
        """Give a group its places.

        Parameters
        ----------
        turn
            Number of the group.
        first_step
            The first step that it has cells of.
        bounds : int64 [steps + 1]
            Where the cells of each of its steps begin.
        lengths : int64 [n]
            Entries of each cell.
        types
            Of tokens and of counts.
        """
        ends = np.concatenate([[0], np.cumsum(lengths)])
        starts = ends[bounds]
        entries = np.diff(starts).tolist()
        with self._lock:
            in_turn = turn == self._next
            if in_turn:
                self._next += 1
                # No group that is still to come has cells of earlier steps.
                self._rooms = {step: room for step, room in self._rooms.items() if step >= first_step}
            found = [self._rooms.get(first_step + i) if in_turn else None for i in range(len(entries))]
            fits = [room is not None and room.has_place(n, types) for room, n in zip(found, entries, strict=True)]
            new = iter(self._new(fits.count(False), max([self._likely(lengths), *entries]), types))
            rooms = [room if fit and room else next(new) for room, fit in zip(found, fits, strict=True)]
            if in_turn:
                self._rooms.update(zip(range(first_step, first_step + len(rooms)), rooms, strict=True))
            at = [slice(room.filled, room.filled + n) for room, n in zip(rooms, entries, strict=True)]
            for room, place in zip(rooms, at, strict=True):
                room.filled = place.stop
        tokens = [room.token[place] for room, place in zip(rooms, at, strict=True)]
        counts = [room.count[place] for room, place in zip(rooms, at, strict=True)]
        # Where each cell begins among those of its step.
        within = ends[:-1] - np.repeat(starts[:-1], np.diff(bounds))
        token, count = (_places(parts, within, bounds) for parts in (tokens, counts))
        return Reserved(token, count, tokens, counts)

    def _likely(self, lengths: I64) -> int:
        """Return how many entries a step seldom exceeds whose cells are like these."""
        return int(self._cells * lengths.mean() + 2.5 * self._cells**0.5 * lengths.std())

    def _new(self, n: int, size: int, types: tuple[np.dtype[Any], ...]) -> list[_Room]:
        if size > self._size:
            # Rooms of one size take each other's memory.
            self._size = size + size // 64
        rooms, size = [], self._size
        for first in range(0, n, _TOGETHER):
            some = min(_TOGETHER, n - first)
            token, count = (self._memory.empty(some * size, kind).reshape(some, size) for kind in types)
            rooms += [_Room(token[i], count[i]) for i in range(some)]
        return rooms


def _places(parts: list[Array], within: I64, bounds: I64) -> Places:
    begin = np.array([part.__array_interface__["data"][0] for part in parts], np.int64)
    return Places(np.repeat(begin, np.diff(bounds)) + within * parts[0].itemsize, parts[0])
