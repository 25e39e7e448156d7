"""Which cells of a reading cannot be read, and why: those alone whose own entries are missing or damaged."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from cellmill.atlas.damaged_entries import DamagedEntriesError
from cellmill.errors import IntegrityError

I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class Damage:
    """What is wrong with the rows of a reading.

    Parameters
    ----------
    n_rows
        Of the reading.

    Attributes
    ----------
    lost : bool [n_rows]
        Rows that cannot be read.
    reasons
        Number of each shard that has such rows, and the first that is wrong with it.
    """

    def __init__(self, n_rows: int) -> None:
        self.lost: Bools = np.zeros(n_rows, bool)
        self.reasons: dict[int, IntegrityError] = {}

    def __bool__(self) -> bool:
        return bool(self.reasons)


def read_what_can_be(read: Callable[[I64], None], begin: I64, end: I64) -> tuple[Bools, IntegrityError | None]:
    """Read rows of a damaged shard, but for those that cannot be.

    A row is lost if and only if reading it alone fails, so that it does not matter which rows are read with it.

    Parameters
    ----------
    read
        Reads some of the rows, by their ascending numbers, or raises.
    begin, end : int64 [n]
        Entries of each row.

    Returns
    -------
    lost : bool [n]
        Rows that cannot be read.
    reason
        What was wrong first; None if all could be read.
    """
    lost = np.zeros(begin.size, bool)
    reason: IntegrityError | None = None
    todo = [np.arange(begin.size)]
    while todo:
        rows = todo.pop()
        if not rows.size:
            continue
        try:
            read(rows)
        except IntegrityError as error:
            reason = reason or error
            bad = error.hit(begin[rows], end[rows]) if isinstance(error, DamagedEntriesError) else None
            if bad is not None and bad.any():
                lost[rows[bad]] = True
                todo.append(rows[~bad])
            elif rows.size == 1:
                lost[rows] = True
            else:
                todo += np.array_split(rows, 2)[::-1]
    return lost, reason
