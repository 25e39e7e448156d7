"""From the columns of a matrix to features: counts of one feature summed, others left out."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cellmill.atlas.jit import compiled
from cellmill.counts import TOLERANCE

LARGEST = 2**32 - 1
"""The largest count."""
_SMALL = 1 << 30


@compiled
def round_counts(values: npt.NDArray[Any], counts: npt.NDArray[np.uint32]) -> int:
    """Round values to counts; return how many are none.

    A pass of its own: without branches, and with stores side by side, several values are rounded at once.
    """
    if _are_small(values, counts):
        return 0
    wrong = 0
    for i in range(values.size):
        value = np.float64(values[i])
        count = np.rint(value)
        # Written so that NaN fails it too.
        wrong += not (abs(value - count) <= TOLERANCE * max(count, 1.0) and 0.0 <= count <= LARGEST)
        counts[i] = np.uint32(count)
    return wrong


@compiled
def _are_small(values: npt.NDArray[Any], counts: npt.NDArray[np.uint32]) -> bool:
    """Write values as counts; return whether all are integers of 30 bits, as nearly always: these are exact."""
    other = False
    for i in range(values.size):
        value = values[i]
        count = np.int32(value)
        # Written so that NaN fails it too.
        other |= (not (0 <= value <= _SMALL)) | (values.dtype.type(count) != value)
        counts[i] = np.uint32(count)
    return not other


@compiled
def move_row(
    columns: npt.NDArray[Any],
    counts: npt.NDArray[np.uint32],
    target: npt.NDArray[np.int32],
    out_indices: npt.NDArray[Any],
    out_data: npt.NDArray[Any],
    umis: npt.NDArray[np.float64],
) -> tuple[int, int, bool]:
    """Move a row to features; return how many entries are left, the largest, and whether features ascend.

    Parameters
    ----------
    columns, counts : [n]
        With zeros and repeated columns, in any order.
    target : int32 [n_in]
        Feature of each column, -1 for none.
    out_indices, out_data : [n + 1]
        One longer, since an entry is written before it is known to be wanted.
    umis : float64 [n_in]
        Sums of columns; added to.
    """
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
