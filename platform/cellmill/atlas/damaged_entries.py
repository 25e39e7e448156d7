"""Which entries of a shard are damaged, so that the others can be read without them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cellmill.errors import IntegrityError

I64 = npt.NDArray[np.int64]


class DamagedEntriesError(IntegrityError):
    """Some entries of a shard are missing or damaged.

    Parameters
    ----------
    what, where, fix
        As of every error.
    ranges
        Entries that cannot be read, among others perhaps: first, and one after the last.
    """

    def __init__(self, what: str, *, where: str = "", fix: str = "", ranges: Sequence[tuple[int, int]] = ()) -> None:
        super().__init__(what, where=where, fix=fix)
        self.ranges = ranges

    def hit(self, begin: I64, end: I64) -> npt.NDArray[np.bool_]:
        """Return which rows have entries in the ranges: bool [n].

        Parameters
        ----------
        begin, end : int64 [n]
            Entries of each row.
        """
        found = np.zeros(begin.size, bool)
        for first, last in self.ranges:
            found |= (begin < last) & (end > first) & (end > begin)
        return found
