"""From the columns of a matrix to features: counts of one feature summed, others left out, in one pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cellmill.atlas.jit import compiled
from cellmill.counts import TOLERANCE

I64 = npt.NDArray[np.int64]
LARGEST = 2**32 - 1
"""The largest count."""
FINE, NO_COUNT, TOO_LARGE = 0, 1, 2
"""What `move_to_features` returns: all is done; a value is no count; a sum does not fit."""


@compiled
def _rounded(values: npt.NDArray[Any], counts: npt.NDArray[np.uint32]) -> int:
    """Round values to counts; return how many are none.

    A pass of its own: without branches, and with stores side by side, several values are rounded at once.
    """
    wrong = 0
    for i in range(values.size):
        value = np.float64(values[i])
        count = np.rint(value)
        # Written so that NaN fails it too.
        wrong += not (abs(value - count) <= TOLERANCE * max(count, 1.0) and 0.0 <= count <= LARGEST)
        counts[i] = np.uint32(count)
    return wrong


@compiled
def move_to_features(
    indptr: I64,
    columns: npt.NDArray[Any],
    values: npt.NDArray[Any],
    target: npt.NDArray[np.int32],
    out_indices: npt.NDArray[Any],
    out_data: npt.NDArray[Any],
    out_indptr: I64,
    umis: npt.NDArray[np.float64],
    limit: int,
) -> int:
    """Write each row's features and counts, ascending, and what each column sums to; return how it went.

    Parameters
    ----------
    indptr : int64 [n + 1]
        Where rows begin in `columns` and `values`, which may hold zeros and repeated columns, in any order.
    target : int32 [n_in]
        Feature of each column, -1 for none.
    out_indices, out_data : [nnz + 1]
        One longer than `values`, since an entry is written before it is known to be wanted.
    out_indptr : int64 [n + 1]
        Zeros.
    umis : float64 [n_in]
        Added to.
    limit
        The largest count that `out_data` holds.
    """
    longest = 0
    for row in range(indptr.size - 1):
        longest = max(longest, indptr[row + 1] - indptr[row])
    counts = np.empty(longest, np.uint32)
    position = 0
    for row in range(indptr.size - 1):
        entries = slice(indptr[row], indptr[row + 1])
        own = counts[: indptr[row + 1] - indptr[row]]
        if _rounded(values[entries], own):
            return NO_COUNT
        out = slice(position, position + own.size + 1)
        features, sums = out_indices[out], out_data[out]
        n, highest, ascending = _moved(columns[entries], own, target, features, sums, umis)
        if highest > limit:
            return TOO_LARGE
        if not ascending:
            n = sum_row(features[:n], sums[:n], limit)
            if n < 0:
                return TOO_LARGE
        position += n
        out_indptr[row + 1] = position
    return FINE


@compiled
def _moved(
    columns: npt.NDArray[Any],
    counts: npt.NDArray[np.uint32],
    target: npt.NDArray[np.int32],
    out_indices: npt.NDArray[Any],
    out_data: npt.NDArray[Any],
    umis: npt.NDArray[np.float64],
) -> tuple[int, int, bool]:
    """Move a row to features; return how many entries are left, the largest, and whether features ascend."""
    n = np.int64(0)
    last = np.int64(-1)
    ascending = True
    highest = np.int64(0)
    for i in range(columns.size):
        # Without a sign, no test is made for positions from the end.
        column = np.uintp(columns[i])
        count = np.int64(counts[i])
        umis[column] += count
        feature = np.int64(target[column])
        # What is not wanted is written over by the next.
        out_indices[np.uintp(n)] = feature
        out_data[np.uintp(n)] = count
        wanted = (feature >= 0) & (count > 0)
        ascending = bool(ascending & ((feature > last) | (not wanted)))
        last = feature if wanted else last
        highest = max(highest, count * np.int64(wanted))
        n += np.int64(wanted)
    return int(n), int(highest), ascending


@compiled
def sum_row(features: npt.NDArray[Any], counts: npt.NDArray[Any], limit: int) -> int:
    """Sort a row by feature and sum what is of one; return how many are left, -1 if a sum is above `limit`."""
    order = np.argsort(features)
    from_features, from_counts = features[order], counts[order]
    end = -1
    last = np.int64(-1)
    total = np.int64(0)
    for i in range(order.size):
        if from_features[i] == last:
            total += np.int64(from_counts[i])
            if total > limit:
                return -1
        else:
            end += 1
            last = np.int64(from_features[i])
            total = np.int64(from_counts[i])
        features[end] = last
        counts[end] = total
    return end + 1
