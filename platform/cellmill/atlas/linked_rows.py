"""From a row of a linked store to counts of features, once more: what was checked when it was linked is hashed now."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cellmill.atlas.column_sums import LARGEST, sum_row
from cellmill.atlas.jit import compiled

I64 = npt.NDArray[np.int64]


@compiled
def known_features(
    indptr: I64,
    columns: npt.NDArray[Any],
    values: npt.NDArray[Any],
    target: npt.NDArray[np.int32],
    binary: npt.NDArray[np.bool_],
    features: npt.NDArray[Any],
    counts: npt.NDArray[Any],
    out_indptr: I64,
) -> bool:
    """Write each row's features, ascending, and counts; return whether columns are there and sums are counts.

    A value that is no count, or a large one, becomes some other: whoever compares content hashes will see it.

    Parameters
    ----------
    indptr : int64 [n + 1]
        Where rows begin in `columns` and `values`, which may hold zeros and repeated columns, in any order.
    target : int32 [n_in]
        Feature of each column, -1 for none.
    binary : bool [n_features]
        Features whose counts are 1.
    features, counts : [nnz + 1]
        One longer than `values`, since an entry is written before it is known to be wanted.
    out_indptr : int64 [n + 1]
        Where rows begin in what is written.
    """
    if not binary.size and _plain(indptr, columns, values, target, features, counts):
        out_indptr[:] = indptr
        return True
    n_in = np.uintp(target.size)
    position = np.int64(0)
    out_indptr[0] = 0
    for row in range(indptr.size - 1):
        start = position
        last = np.int64(-1)
        ascending = True
        for i in range(indptr[row], indptr[row + 1]):
            # Without a sign, a column below zero is one that is too large.
            column = np.uintp(columns[i])
            if column >= n_in:
                return False
            feature = np.int64(target[column])
            count = np.int64(np.rint(np.float64(values[i])))
            # What is not wanted is written over by the next.
            features[np.uintp(position)] = feature
            counts[np.uintp(position)] = count
            wanted = (feature >= 0) & (count != 0)
            ascending = bool(ascending & ((feature > last) | (not wanted)))
            last = feature if wanted else last
            position += np.int64(wanted)
        if not ascending:
            n = sum_row(features[start:position], counts[start:position], LARGEST)
            if n < 0:
                return False
            position = start + n
        if binary.size:
            for i in range(start, position):
                if binary[features[i]]:
                    counts[i] = 1
        out_indptr[row + 1] = position
    return True


@compiled
def _plain(
    indptr: I64,
    columns: npt.NDArray[Any],
    values: npt.NDArray[Any],
    target: npt.NDArray[np.int32],
    features: npt.NDArray[Any],
    counts: npt.NDArray[Any],
) -> bool:
    """Do the same for rows of which nothing is left out, summed or moved, several entries at once.

    Return whether they are such rows; if not, what was written means nothing.
    """
    n_in, beyond = np.uintp(target.size), np.int64(0)
    for i in range(columns.size):
        beyond += np.int64(np.uintp(columns[i]) >= n_in)
    if beyond:
        return False
    unwanted, least = np.int64(0), np.int32(0)
    for i in range(columns.size):
        feature = target[np.uintp(columns[i])]
        least = min(least, feature)
        features[i] = feature
    for i in range(values.size):
        counts[i] = np.int64(np.rint(values[i]))
        unwanted += np.int64(counts[i] == 0)
    if unwanted or least < 0:
        return False
    descents = np.int64(0)
    for i in range(1, columns.size):
        descents += np.int64(features[i] <= features[i - 1])
    for row in range(1, indptr.size - 1):
        first = indptr[row]
        if indptr[row + 1] > first and first > 0:
            descents -= np.int64(features[first] <= features[first - 1])
    return bool(descents == 0)
