"""A source's matrix to counts over features: one pass over the entries of a chunk."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import sparse

from cellmill.atlas.column_sums import NO_COUNT, TOO_LARGE, move_to_features
from cellmill.atlas.layout import index_dtype
from cellmill.counts import check_counts, refuse_inexact
from cellmill.errors import CountsError
from cellmill.ingestion.counts import Counts


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
        state = move_to_features(starts, matrix.indices, values, target, indices, data, indptr, umis, limit)
        if state != TOO_LARGE:
            break
    if state == NO_COUNT:
        check_counts(values, where)  # says what is wrong, and raises
        raise CountsError("The matrix holds values that are no counts.", where=where)
    if state == TOO_LARGE:
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
