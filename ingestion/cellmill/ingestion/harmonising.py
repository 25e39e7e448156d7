"""Counts over a source's columns to counts over features: one pass over the entries of a chunk."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from cellmill.atlas.jit import compiled
from cellmill.errors import CountsError

I64 = npt.NDArray[np.int64]
_LARGEST = np.iinfo(np.uint32).max


def harmonise_rows(
    matrix: sparse.csr_matrix, target: npt.NDArray[np.int32], n_features: int, where: str
) -> tuple[sparse.csr_matrix, npt.NDArray[np.float64]]:
    """Move counts from columns to features.

    Parameters
    ----------
    matrix : csr [n, n_in], uint32
        Counts, in any order within a row, zeros and repeated columns allowed.
    target : int32 [n_in]
        Feature of each column, -1 for none.
    n_features
        Number of features.
    where
        For the message.

    Returns
    -------
    counts : csr [n, n_features], uint32
        Features ascending within a row, counts of one feature summed, no zeros.
    umis : float64 [n_in]
        Sum of each input column, features or not.

    Raises
    ------
    CountsError
        The sum of several columns is above 2**32 - 1.
    """
    indices = np.empty(matrix.indices.size, dtype=np.int32)
    data = np.empty(matrix.indices.size, dtype=np.uint32)
    indptr = np.zeros(matrix.shape[0] + 1, dtype=np.int64)
    umis = np.zeros(matrix.shape[1], dtype=np.float64)
    fits = _harmonise(matrix.indptr.astype(np.int64), matrix.indices, matrix.data, target, indices, data, indptr, umis)
    if not fits:
        raise CountsError("The columns of one gene add up to more than 2**32 - 1.", where=where)
    n = int(indptr[-1])
    result = sparse.csr_matrix((matrix.shape[0], n_features), dtype=np.uint32)
    result.indptr, result.indices, result.data = indptr, indices[:n], data[:n]
    return result, umis


@compiled
def _harmonise(
    indptr: I64,
    columns: npt.NDArray[Any],
    counts: npt.NDArray[np.uint32],
    target: npt.NDArray[np.int32],
    out_indices: npt.NDArray[np.int32],
    out_data: npt.NDArray[np.uint32],
    out_indptr: I64,
    umis: npt.NDArray[np.float64],
) -> bool:
    position = 0
    for row in range(indptr.size - 1):
        start = position
        last = -1
        ascending = True
        for i in range(indptr[row], indptr[row + 1]):
            count = counts[i]
            if count == 0:
                continue
            column = columns[i]
            umis[column] += count
            feature = target[column]
            if feature < 0:
                continue
            ascending = ascending and feature > last
            last = feature
            out_indices[position] = feature
            out_data[position] = count
            position += 1
        if not ascending:
            order = np.argsort(out_indices[start:position])
            features, values = out_indices[start:position][order], out_data[start:position][order]
            end = start - 1
            last = -1
            total = np.int64(0)
            for i in range(features.size):
                if features[i] == last:
                    total += np.int64(values[i])
                    if total > _LARGEST:
                        return False
                else:
                    end += 1
                    last = features[i]
                    total = np.int64(values[i])
                out_indices[end] = last
                out_data[end] = total
            position = end + 1
        out_indptr[row + 1] = position
    return True
