"""A source's matrix to counts over features: one pass over the entries of a chunk."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from cellmill.atlas.jit import compiled
from cellmill.atlas.layout import count_dtype, index_dtype
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
    for dtype in dict.fromkeys((_narrowest(values), np.dtype(np.uint32))):
        data = np.empty(values.size + 1, dtype=dtype)
        umis = np.zeros(matrix.shape[1], dtype=np.float64)
        largest = int(np.iinfo(dtype).max)
        state = _harmonise(starts, matrix.indices, values, target, indices, data, indptr, umis, largest)
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


def _narrowest(values: npt.NDArray[Any]) -> np.dtype[Any]:
    """Return the dtype that holds the largest value, if it is a count."""
    largest = float(values.max(initial=0))
    return count_dtype(round(largest)) if 0 <= largest <= _LARGEST else np.dtype(np.uint32)


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
    largest: int,
) -> int:
    position = 0
    for row in range(indptr.size - 1):
        start = position
        last = np.int64(-1)
        ascending = True
        own_values, own_columns = values[indptr[row] : indptr[row + 1]], columns[indptr[row] : indptr[row + 1]]
        for i in range(own_values.size):
            value = np.float64(own_values[i])
            count = np.rint(value)
            # Written so that NaN fails it too.
            if not (abs(value - count) <= TOLERANCE * max(count, 1.0) and 0.0 <= count <= _LARGEST):
                return _NO_COUNT
            column = own_columns[i]
            umis[column] += count
            feature = np.int64(target[column])
            out_indices[position] = feature
            out_data[position] = np.int64(count)
            if feature >= 0 and count > 0.0:
                if count > largest:
                    return _TOO_LARGE
                ascending = bool(ascending and feature > last)
                last = feature
                position += 1
        if not ascending:
            order = np.argsort(out_indices[start:position])
            features, counts = out_indices[start:position][order], out_data[start:position][order]
            end = start - 1
            last = np.int64(-1)
            total = np.int64(0)
            for i in range(features.size):
                if features[i] == last:
                    total += np.int64(counts[i])
                    if total > largest:
                        return _TOO_LARGE
                else:
                    end += 1
                    last = np.int64(features[i])
                    total = np.int64(counts[i])
                out_indices[end] = last
                out_data[end] = total
            position = end + 1
        out_indptr[row + 1] = position
    return _FINE
