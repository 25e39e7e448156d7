"""From rows of somebody's store to counts of features, beside what sparse matrices say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from cellmill.atlas.linked_rows import known_features

N_IN = 30


@given(
    seed=st.integers(0, 1 << 20),
    rows=st.integers(0, 6),
    kinds=st.sampled_from([(np.int32, np.float32), (np.int64, np.int64), (np.int32, np.uint16)]),
    messy=st.sets(st.sampled_from(["zeros", "order", "dropped", "summed", "moved", "binary"])),
)
def test_features_and_counts_are_those_of_the_matrix(
    seed: int, rows: int, kinds: tuple[Any, Any], messy: set[str]
) -> None:
    rng = np.random.default_rng(seed)
    matrix = sparse.random(rows, N_IN, density=0.4, format="csr", random_state=rng)
    matrix.data = rng.integers(1, 90, matrix.nnz).astype(kinds[1])
    target = np.arange(N_IN, dtype=np.int32)
    if "zeros" in messy:
        matrix.data[::3] = 0
    if "dropped" in messy:
        target[3:5] = -1
    if "summed" in messy:
        target[9] = 8
    if "moved" in messy:
        target = rng.permutation(target).astype(np.int32)
    binary = np.zeros(N_IN if "binary" in messy else 0, bool)
    binary[::2] = True
    indices = matrix.indices.astype(kinds[0])
    if "order" in messy:
        for begin, end in zip(matrix.indptr[:-1], matrix.indptr[1:], strict=True):
            order = begin + rng.permutation(end - begin)
            indices[begin:end], matrix.data[begin:end] = indices[order], matrix.data[order]
    features, counts = np.empty(matrix.nnz + 1, np.uint16), np.empty(matrix.nnz + 1, np.uint8)
    indptr = np.empty(rows + 1, np.int64)
    args = (matrix.indptr.astype(np.int64), indices, matrix.data, target, binary, features, counts, indptr)
    assert known_features(*args)
    wanted = np.zeros((rows, N_IN))
    for row, column, value in zip(
        np.repeat(np.arange(rows), np.diff(matrix.indptr)), indices, matrix.data, strict=True
    ):
        if target[column] >= 0:
            wanted[row, target[column]] += value
    if binary.size:
        wanted[:, binary] = wanted[:, binary] > 0
    found = sparse.csr_matrix((counts[: indptr[-1]], features[: indptr[-1]], indptr), shape=(rows, N_IN))
    assert found.has_canonical_format
    assert found.nnz == np.count_nonzero(wanted)
    assert (found.toarray() == wanted).all()


@pytest.mark.parametrize("column", [-1, N_IN])
def test_a_column_that_is_not_there_is_told(column: int) -> None:
    indptr, out = np.array([0, 2]), np.empty(2, np.int64)
    features, counts, none = np.empty(3, np.uint16), np.empty(3, np.uint8), np.zeros(0, bool)
    columns, values, target = np.array([4, column], np.int32), np.ones(2, np.float32), np.arange(N_IN, dtype=np.int32)
    assert not known_features(indptr, columns, values, target, none, features, counts, out)
