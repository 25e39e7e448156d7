"""Memory that is used again: the first touch of new pages costs more than what is written to them."""

from __future__ import annotations

import mmap
import threading
from collections import deque
from typing import Any

import numpy as np
import numpy.typing as npt

_SMALL = 1 << 16
"""Bytes below which the allocator of the process has pages at hand."""

_HUGE = 1 << 22
"""Bytes from which on large pages are worth asking for."""

_LARGE_PAGE = 1 << 21

_LARGER = 8
"""How many times as large as what is wanted memory may be."""

Bytes = npt.NDArray[np.uint8]


class Memory:
    """Gives arrays whose memory comes back by itself when the last view of them is gone.

    No more is held than was in use at once: what is idle and fits nothing makes room for what is new. Safe between
    threads.
    """

    def __init__(self) -> None:
        self._idle: deque[Bytes] = deque()
        self._lock = threading.Lock()

    def empty(self, size: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Return an array of `size` entries, with whatever is in them."""
        nbytes = size * np.dtype(dtype).itemsize
        if nbytes < _SMALL:
            return np.empty(size, dtype)
        return np.asarray(_Lent(self._take(nbytes), self._idle))[:nbytes].view(dtype)

    @property
    def idle_bytes(self) -> int:
        """Bytes that wait to be used again."""
        return sum(memory.nbytes for memory in tuple(self._idle))

    def _take(self, nbytes: int) -> Bytes:
        with self._lock:
            # Others only append.
            idle = [self._idle.popleft() for _ in range(len(self._idle))]
            # Much larger memory is better than none: given up, it would soon be wanted again.
            fits = [memory for memory in idle if nbytes <= memory.nbytes <= _LARGER * nbytes]
            if fits:
                found = min(fits, key=lambda memory: memory.nbytes)
                self._idle.extend(memory for memory in idle if memory is not found)
                return found
            # A little more than is wanted, so that it fits the next, which is about as large.
            size = nbytes + nbytes // 8
            freed = 0
            while idle and freed < size:
                freed += idle.pop(0).nbytes
            self._idle.extend(idle)
        return _new(size)


def _new(nbytes: int) -> Bytes:
    """Return new pages, which go back to the system when they are given up."""
    # The allocator of the process keeps large pieces that were freed, in holes that fit nothing.
    if nbytes < _HUGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return np.frombuffer(mmap.mmap(-1, nbytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8)
    # Only whole large pages become such. What is mapped beside them is never touched.
    pages = mmap.mmap(-1, nbytes + 2 * _LARGE_PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    pages.madvise(mmap.MADV_HUGEPAGE)
    memory = np.frombuffer(pages, np.uint8)
    first = -memory.ctypes.data % _LARGE_PAGE
    return memory[first : first + nbytes]


class _Lent:
    """What an array and all of its views hold on to while they use some memory."""

    def __init__(self, memory: Bytes, idle: deque[Bytes]) -> None:
        self.__array_interface__ = memory.__array_interface__
        self._memory, self._idle = memory, idle

    def __del__(self) -> None:
        self._idle.append(self._memory)
