"""Rows of numbers on their way to their parts: in memory while they are few, in temporary files when they are many."""

from __future__ import annotations

from collections import defaultdict
from types import TracebackType

import numpy as np
import numpy.typing as npt

from cellmill.scratch import ScratchFolder

U64 = npt.NDArray[np.uint64]

_IN_MEMORY = 64 << 20


class Spill:
    """Rows dealt out to parts, which are taken one by one.

    Parameters
    ----------
    width
        Numbers in a row.
    n_parts
        How many parts.
    """

    def __init__(self, width: int, n_parts: int) -> None:
        self.n_parts = n_parts
        self._width = width
        self._waiting: dict[int, list[U64]] = defaultdict(list)
        self._bytes = 0
        self._folder: ScratchFolder | None = None

    def __enter__(self) -> Spill:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._folder is not None:
            self._folder.delete()

    def add(self, rows: U64, part: npt.NDArray[np.int64]) -> None:
        """Add rows, each to its part."""
        if not len(rows):
            return
        order = np.argsort(part, kind="stable")
        found, first = np.unique(part[order], return_index=True)
        for number, some in zip(found.tolist(), np.split(rows[order], first[1:]), strict=True):
            self._waiting[number].append(some)
        self._bytes += rows.nbytes
        if self._bytes > _IN_MEMORY:
            self._write()

    def part(self, number: int) -> U64:
        """Return the rows of a part, uint64 [n, width], in the order they came."""
        parts = list(self._waiting.get(number, []))
        if self._folder is not None and (path := self._folder.path / str(number)).exists():
            parts.insert(0, np.fromfile(path, np.uint64).reshape(-1, self._width))
        return np.concatenate(parts) if parts else np.empty((0, self._width), np.uint64)

    def _write(self) -> None:
        if self._folder is None:
            self._folder = ScratchFolder()
        for number, parts in self._waiting.items():
            with (self._folder.path / str(number)).open("ab") as file:
                for rows in parts:
                    rows.tofile(file)
        self._waiting.clear()
        self._bytes = 0
