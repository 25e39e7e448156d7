"""Rows of a shard, in as little memory as they need: as runs, or as one bit for each row."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Bits = npt.NDArray[np.uint8]


class RowSet:
    """Some rows of a shard; it never changes.

    Attributes
    ----------
    n
        How many rows it has.
    nbytes
        Memory that it takes.

    Parameters
    ----------
    mask : bool [n_rows]
        Which rows.
    """

    __slots__ = ("_bits", "_n_rows", "_runs", "n")

    def __init__(self, mask: npt.NDArray[np.bool_]) -> None:
        edges = np.flatnonzero(np.diff(mask, prepend=False, append=False)).astype(np.uint32)
        self.n = int(np.count_nonzero(mask))
        self._n_rows = mask.size
        self._runs: npt.NDArray[np.uint32] | None = None
        self._bits: Bits | None = None
        if edges.nbytes <= mask.size // 8:
            self._runs = edges.reshape(-1, 2)
        else:
            self._bits = np.packbits(mask)

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        held = self._runs if self._runs is not None else self._bits
        assert held is not None
        return held.nbytes

    def rows(self) -> npt.NDArray[np.uint32]:
        """Return the rows, ascending: uint32 [n]."""
        if self._bits is not None:
            return np.flatnonzero(np.unpackbits(self._bits, count=self._n_rows)).astype(np.uint32)
        assert self._runs is not None
        lengths = (self._runs[:, 1] - self._runs[:, 0]).astype(np.int64)
        shift = self._runs[:, 0].astype(np.int64) - (np.cumsum(lengths) - lengths)
        rows: npt.NDArray[np.uint32] = (np.arange(self.n) + np.repeat(shift, lengths)).astype(np.uint32)
        return rows
