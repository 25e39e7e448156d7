"""How far an ingestion is, in cells: reading them is one part of the work, writing them the other."""

from __future__ import annotations

from collections.abc import Callable

_READING = 0.6
"""Share of reading, measured with plain h5ad on a local disk."""


class Work:
    """Cells done, so that one number tells how long all of it will take.

    Parameters
    ----------
    advance
        Called with cells that are done since the last call.
    n_cells
        Cells of all sources.
    """

    def __init__(self, advance: Callable[[int], None], n_cells: int) -> None:
        self._advance, self._n_cells = advance, n_cells
        self._read = self._written = 0.0
        self._told = 0

    def read(self, cells: int) -> None:
        """Count cells that were read."""
        self._read += cells
        self._tell()

    def written(self, cells: int, of: int) -> None:
        """Count cells that were written, of all that will be."""
        self._written += cells / of * self._n_cells
        self._tell()

    def _tell(self) -> None:
        done = round(self._read * _READING + self._written * (1 - _READING))
        if done > self._told:
            self._advance(done - self._told)
            self._told = done
