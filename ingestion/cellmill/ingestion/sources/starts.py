"""Where the values of each cell begin among all that are stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

_AT_ONCE = 1 << 20


class Starts(Protocol):
    """An array of int64 [n_cells + 1], or what is indexed and sliced alike."""

    @property
    def size(self) -> int:
        """Number of cells, and one."""
        ...

    def __getitem__(self, key: Any, /) -> Any:
        """Return one of them, or an array of some that follow each other."""
        ...


@runtime_checkable
class KnownLongest(Protocol):
    """Starts that know which cell has most values."""

    longest: tuple[int, int]


def longest(starts: Starts) -> tuple[int, int]:
    """Return the number of the cell with most values, and how many it has; (0, 0) where there is no cell."""
    if isinstance(starts, KnownLongest):
        return starts.longest
    cell, most = 0, 0
    for first in range(0, starts.size - 1, _AT_ONCE):
        lengths = np.diff(starts[first : first + _AT_ONCE + 1])
        at = int(lengths.argmax())
        if lengths[at] > most:
            cell, most = first + at, int(lengths[at])
    return cell, most


class EvenStarts:
    """Those of groups of cells that have as many values each: what is held does not grow with the cells.

    Parameters
    ----------
    n_cells
        Cells of each group.
    each
        Values of a cell of each group.
    """

    def __init__(self, n_cells: Sequence[int], each: Sequence[int]) -> None:
        self._each = np.array(each, np.int64)
        self._first = np.concatenate([[0], np.cumsum(n_cells, dtype=np.int64)])
        self._before = np.concatenate([[0], np.cumsum(np.array(n_cells, np.int64) * self._each)])
        most = int(self._each.argmax()) if self._each.size else 0
        self.longest = (int(self._first[most]), int(self._each[most])) if self.size > 1 else (0, 0)

    @property
    def size(self) -> int:
        """Number of cells, and one."""
        return int(self._first[-1]) + 1

    def __getitem__(self, key: Any, /) -> Any:
        rows: Any = range(self.size)[key]
        if isinstance(rows, int):
            return int(self._of(np.array([rows]))[0])
        return self._of(np.arange(rows.start, rows.stop, rows.step))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.asarray(self[:], dtype)

    def _of(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        group = np.searchsorted(self._first[1:-1], rows, side="right")
        found: npt.NDArray[np.int64] = self._before[group] + (rows - self._first[group]) * self._each[group]
        return found
