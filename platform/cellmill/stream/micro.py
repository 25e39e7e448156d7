"""Micro-batches: a rank's cells of a step in parts of about equal numbers of tokens."""

from __future__ import annotations

import heapq

import numpy as np

from cellmill.tokens import PackedBatch


def micro_batches(packed: PackedBatch, parts: int) -> list[PackedBatch]:
    """Split a batch into exactly `parts` parts, some perhaps empty.

    Cells go, longest first, to the part with the fewest tokens (Graham's rule, at most 4/3 of the best largest part);
    within a part they keep their order.

    Parameters
    ----------
    packed
        The cells.
    parts
        Number of parts, equal on all ranks.
    """
    if parts == 1:
        return [packed]
    lengths = packed.lengths
    owner = np.empty(packed.n_cells, np.int64)
    heap = [(0, part) for part in range(parts)]
    for cell in np.argsort(-lengths, kind="stable"):
        tokens, part = heapq.heappop(heap)
        owner[cell] = part
        heapq.heappush(heap, (tokens + int(lengths[cell]), part))
    return [packed.select(np.flatnonzero(owner == part)) for part in range(parts)]
