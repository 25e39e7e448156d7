"""A source's matrix to counts over features: one pass over the entries of a chunk."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from cellmill.atlas.jit import compiled
from cellmill.atlas.layout import index_dtype
from cellmill.counts import TOLERANCE, check_counts, refuse_inexact
from cellmill.errors import CountsError
from cellmill.ingestion.counts import Counts

I64 = npt.NDArray[np.int64]
_LARGEST = 2**32 - 1
_FINE, _NO_COUNT, _TOO_LARGE = 0, 1, 2


def harmonise_rows(
    matrix: sparse.csr_matrix, target: npt.NDArray[np.int32], binary: npt.NDArray[np.bool_], where: str
) -> tuple[Counts, npt.NDArray[np.float64]]:
    """Check that values are counts, and move them from columns to features.

    Parameters
    ----------
    matrix : csr [n, n_in], any numeric dtype
        Values in any order within a row, zeros and repeated columns allowed.
    target : int32 [n_in]
        Feature of each column, -1 for none.
    binary : bool [n_features]
        Features whose counts become 1.
    where
        For the message.

    Returns
    -------
    counts
        Features ascending within a row, counts of one feature summed, no zeros.
    umis : float64 [n_in]
        Sum of each input column, whether it has a feature or not.

    Raises
    ------
    CountsError
        A value is no raw count, or the sum of several columns is above 2**32 - 1.
    """
    values = matrix.data.view(np.uint8) if matrix.data.dtype == bool else matrix.data
    # One more, since an entry is written before it is known to be wanted.
    indices = np.empty(values.size + 1, dtype=index_dtype(binary.size))
    indptr = np.zeros(matrix.shape[0] + 1, dtype=np.int64)
    starts = matrix.indptr.astype(np.int64)
    for dtype in (np.uint16, np.uint32):
        data = np.empty(values.size + 1, dtype=dtype)
        umis = np.zeros(matrix.shape[1], dtype=np.float64)
        limit = int(np.iinfo(dtype).max)
        state = _harmonise(starts, matrix.indices, values, target, indices, data, indptr, umis, limit)
        if state != _TOO_LARGE:
            break
    if state == _NO_COUNT:
        check_counts(values, where)  # says what is wrong, and raises
        raise CountsError("The matrix holds values that are no counts.", where=where)
    if state == _TOO_LARGE:
        raise CountsError("The columns of one gene add up to more than 2**32 - 1.", where=where)
    if values.dtype.kind == "f" and values.size:
        refuse_inexact(float(values.max()), values.dtype, where)
    n = int(indptr[-1])
    if binary.any():
        data[:n][binary[indices[:n]]] = 1
    if n < values.size // 2:
        # What is kept shall not hold on to memory for what is not.
        return Counts(indptr, indices[:n].copy(), data[:n].copy(), binary.size), umis
    return Counts(indptr, indices[:n], data[:n], binary.size), umis


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
        wrong += not (abs(value - count) <= TOLERANCE * max(count, 1.0) and 0.0 <= count <= _LARGEST)
        counts[i] = np.uint32(count)
    return wrong


@compiled
def _harmonise(
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
    longest = 0
    for row in range(indptr.size - 1):
        longest = max(longest, indptr[row + 1] - indptr[row])
    counts = np.empty(longest, np.uint32)
    position = 0
    for row in range(indptr.size - 1):
        entries = slice(indptr[row], indptr[row + 1])
        own = counts[: indptr[row + 1] - indptr[row]]
        if _rounded(values[entries], own):
            return _NO_COUNT
        out = slice(position, position + own.size + 1)
        features, sums = out_indices[out], out_data[out]
        n, highest, ascending = _moved(columns[entries], own, target, features, sums, umis)
        if highest > limit:
            return _TOO_LARGE
        if not ascending:
            n = _summed(features[:n], sums[:n], limit)
            if n < 0:
                return _TOO_LARGE
        position += n
        out_indptr[row + 1] = position
    return _FINE


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
def _summed(features: npt.NDArray[Any], counts: npt.NDArray[Any], limit: int) -> int:
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
