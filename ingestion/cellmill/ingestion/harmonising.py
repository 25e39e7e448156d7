"""A source's matrix to counts over features: one pass over the entries of a chunk."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from cellmill.atlas.jit import compiled
from cellmill.counts import TOLERANCE, check_counts
from cellmill.errors import CountsError
from cellmill.ingestion.counts import Counts

I64 = npt.NDArray[np.int64]
_LARGEST = 2**32 - 1
_FINE, _NO_COUNT, _TOO_LARGE = 0, 1, 2


def harmonise_rows(
    matrix: sparse.csr_matrix, target: npt.NDArray[np.int32], n_features: int, where: str
) -> tuple[Counts, npt.NDArray[np.float64]]:
    """Check that values are counts, and move them from columns to features.

    Parameters
    ----------
    matrix : csr [n, n_in], any numeric dtype
        Values in any order within a row, zeros and repeated columns allowed.
    target : int32 [n_in]
        Feature of each column, -1 for none.
    n_features
        Number of features.
    where
        For the message.

    Returns
    -------
    counts
        Features ascending within a row, counts of one feature summed, no zeros; not yet in the narrowest dtypes.
    umis : float64 [n_in]
        Sum of each input column, whether it has a feature or not.

    Raises
    ------
    CountsError
        A value is no raw count, or the sum of several columns is above 2**32 - 1.
    """
    values = matrix.data.view(np.uint8) if matrix.data.dtype == bool else matrix.data
    indices = np.empty(values.size, dtype=np.int32)
    data = np.empty(values.size, dtype=np.uint32)
    indptr = np.zeros(matrix.shape[0] + 1, dtype=np.int64)
    umis = np.zeros(matrix.shape[1], dtype=np.float64)
    state = _harmonise(matrix.indptr.astype(np.int64), matrix.indices, values, target, indices, data, indptr, umis)
    if state == _NO_COUNT:
        check_counts(values, where)  # says what is wrong, and raises
        raise CountsError("The matrix holds values that are no counts.", where=where)
    if state == _TOO_LARGE:
        raise CountsError("The columns of one gene add up to more than 2**32 - 1.", where=where)
    n = int(indptr[-1])
    return Counts(indptr, indices[:n], data[:n], n_features), umis


@compiled
def _harmonise(
    indptr: I64,
    columns: npt.NDArray[Any],
    values: npt.NDArray[Any],
    target: npt.NDArray[np.int32],
    out_indices: npt.NDArray[np.int32],
    out_data: npt.NDArray[np.uint32],
    out_indptr: I64,
    umis: npt.NDArray[np.float64],
) -> int:
    position = 0
    for row in range(indptr.size - 1):
        start = position
        last = -1
        ascending = True
        for i in range(indptr[row], indptr[row + 1]):
            value = np.float64(values[i])
            count = np.rint(value)
            # Written so that NaN fails it too.
            if not (abs(value - count) <= TOLERANCE and 0.0 <= count <= _LARGEST):
                return _NO_COUNT
            if count == 0.0:
                continue
            column = columns[i]
            umis[column] += count
            feature = target[column]
            if feature < 0:
                continue
            ascending = ascending and feature > last
            last = feature
            out_indices[position] = feature
            out_data[position] = np.uint32(count)
            position += 1
        if not ascending:
            order = np.argsort(out_indices[start:position])
            features, counts = out_indices[start:position][order], out_data[start:position][order]
            end = start - 1
            last = -1
            total = np.int64(0)
            for i in range(features.size):
                if features[i] == last:
                    total += np.int64(counts[i])
                    if total > _LARGEST:
                        return _TOO_LARGE
                else:
                    end += 1
                    last = features[i]
                    total = np.int64(counts[i])
                out_indices[end] = last
                out_data[end] = total
            position = end + 1
        out_indptr[row + 1] = position
    return _FINE
