"""How much a task reads, so that it stays within its memory."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cellmill.ingestion.counts import ranges

_RAW_BYTES = 40
"""Of a stored value while it is raw: value and column of 8 bytes, what they become, and copies by the library."""
_ENTRY_BYTES = 8
"""Of a harmonised entry at most: a feature and a count of 4 bytes."""
_CELL_BYTES = 4096
"""Of a cell's metadata: columns of obs as text, and as Arrow."""
_MOST_AT_ONCE = 1 << 20
"""More is slower: fresh memory costs more than what is done with it."""
_MOST_CELLS = 1 << 15
"""Of a chunk: smaller chunks leave more tasks to share out."""
_RAW_SHARE, _CHUNK_SHARE = 0.25, 0.5
"""Of the memory; the rest is for what is not proportional to cells."""


def entries_at_once(megabytes: float) -> int:
    """Return how many raw values a task holds at a time."""
    return max(1, min(_MOST_AT_ONCE, int(megabytes * 1e6 * _RAW_SHARE / _RAW_BYTES)))


def chunks_of(starts: npt.NDArray[np.int64], megabytes: float) -> tuple[tuple[int, int], ...]:
    """Return ranges of cells whose harmonised counts and metadata fit into a task's memory.

    Parameters
    ----------
    starts : int64 [n_cells + 1]
        Where the values of each cell begin.
    megabytes
        Memory of a task.
    """
    limit = int(megabytes * 1e6 * _CHUNK_SHARE)
    weights = starts[1:] * _ENTRY_BYTES + np.arange(1, starts.size) * max(_CELL_BYTES, limit // _MOST_CELLS)
    return tuple(ranges(weights, limit))
