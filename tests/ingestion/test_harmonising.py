"""Counts that are moved to features and packed, against sums of a dense matrix."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from cellmill.atlas.content import content_hash, feature_keys
from cellmill.errors import CountsError
from cellmill.genes import ColumnMapping, Feature
from cellmill.ingestion.harmonising import Harmoniser
from cellmill.ingestion.packing import MOST_BYTES, PackedCells, pack_row, unpack

LARGEST = 2**32 - 1
WIDE = 70_000
# Numbers on both sides of what a byte holds, and of where what does not fit has another length.
COUNTS = st.one_of(st.integers(1, 4), st.integers(250, 260), st.integers(65_530, 65_540), st.just(LARGEST))
CELLS = st.lists(st.dictionaries(st.integers(0, WIDE - 1), COUNTS, max_size=12), min_size=1, max_size=8)


def harmonised(matrix: sparse.csr_matrix, target: np.ndarray, binary: np.ndarray, room: int) -> Harmoniser:
    features = tuple(Feature(f"ENSG{i:011d}", f"G{i}") for i in range(binary.size))
    names = tuple(f"c{i}" for i in range(target.size))
    mapping = ColumnMapping(names, features, target.astype(np.int32), binary, ())
    keys = feature_keys([feature.id for feature in features])
    found = Harmoniser(mapping, np.ones(binary.size, np.uint8), keys, matrix.shape[0], room)
    half = matrix.shape[0] // 2
    found.add(matrix[:half], "here")
    found.add(matrix[half:], "here")
    return found


def dense(cells: PackedCells, n_features: int) -> np.ndarray:
    n = int(cells.lengths.sum())
    features, counts = np.empty(n, np.uint32), np.empty(n, np.uint32)
    assert unpack(cells, features, counts)
    indptr = np.concatenate([[0], np.cumsum(cells.lengths)])
    for a, b in itertools.pairwise(indptr.tolist()):
        assert np.all(np.diff(features[a:b].astype(np.int64)) > 0)
    assert np.all(counts > 0)
    found: np.ndarray = sparse.csr_matrix((counts, features, indptr), (cells.lengths.size, n_features)).toarray()
    return found


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8, np.uint16, np.int32, np.int64])
def test_columns_of_one_feature_are_summed_and_others_left_out(dtype: type) -> None:
    rng = np.random.default_rng(0)
    n_in, n_features = 400, 300
    raw = sparse.random(120, n_in, 0.3, "csr", random_state=rng, data_rvs=lambda n: rng.integers(0, 200, n))
    for start, stop in zip(raw.indptr[:-1], raw.indptr[1:], strict=True):
        order = rng.permutation(stop - start) + start
        raw.indices[start:stop], raw.data[start:stop] = raw.indices[order], raw.data[order]
    target = rng.integers(-1, n_features, n_in)
    binary = rng.random(n_features) < 0.2
    move = np.zeros((n_in, n_features), np.int64)
    move[np.flatnonzero(target >= 0), target[target >= 0]] = 1
    expected = raw.toarray().astype(np.int64) @ move
    expected[:, binary] = expected[:, binary] > 0
    found = harmonised(raw.astype(dtype), target, binary, raw.nnz)
    packed = found.packed()
    np.testing.assert_array_equal(dense(packed, n_features), expected)
    np.testing.assert_array_equal(found.umis, raw.toarray().sum(0))
    np.testing.assert_array_equal(found.largest, expected.max(1))
    np.testing.assert_array_equal(found.measures().n_genes, (expected > 0).sum(1))
    np.testing.assert_array_equal(found.measures().n_counts, expected.sum(1))
    counts = sparse.csr_matrix(expected)
    keys = feature_keys([f"ENSG{i:011d}" for i in range(n_features)])
    hashes = content_hash(counts.indptr.astype(np.int64), counts.indices, counts.data, keys)
    np.testing.assert_array_equal(found.hashes, hashes)
    # In another order, whether read in place or copied.
    order = rng.permutation(packed.lengths.size)
    some = packed.take(order)
    np.testing.assert_array_equal(dense(some, n_features), expected[order])
    content = np.concatenate([part.copy() for part in some.stream(1000)])
    copied = PackedCells(content, np.cumsum(some.sizes) - some.sizes, some.sizes, some.lengths)
    np.testing.assert_array_equal(dense(copied, n_features), expected[order])


def test_cells_that_need_more_room_than_was_thought_get_it() -> None:
    # Three cells whose gaps and counts are all too large for a byte.
    matrix = sparse.csr_matrix(np.full((3, 50_000), 70_000.0, np.float32))
    target = np.where(np.arange(50_000) % 500 == 499, np.arange(50_000), -1)
    found = harmonised(matrix, target, np.zeros(50_000, bool), 1)
    np.testing.assert_array_equal(dense(found.packed(), 50_000), np.where(target >= 0, 70_000, 0)[None].repeat(3, 0))


@pytest.mark.parametrize("value", [0.5, -1.0, np.nan, np.inf, 2.0**32, 1e30])
def test_what_is_no_count_is_refused(value: float) -> None:
    matrix = sparse.csr_matrix(np.array([[1.0, 2.0], [3.0, value]]))
    with pytest.raises(CountsError):
        harmonised(matrix, np.arange(2), np.zeros(2, bool), 4)


def test_a_sum_that_no_count_reaches_is_refused() -> None:
    matrix = sparse.csr_matrix(np.array([[1, 1], [LARGEST, 1]], np.uint32))
    with pytest.raises(CountsError, match="add up"):
        harmonised(matrix, np.zeros(2, np.int32), np.zeros(1, bool), 4)
    found = harmonised(matrix, np.arange(2), np.zeros(2, bool), 4)
    np.testing.assert_array_equal(dense(found.packed(), 2), matrix.toarray())


@given(CELLS)
def test_cells_come_back_as_they_were_packed(cells: list[dict[int, int]]) -> None:
    content, sizes = np.empty(MOST_BYTES * sum(map(len, cells)), np.uint8), list[int]()
    for cell in cells:
        features, counts = np.array(sorted(cell), np.int32), np.array([cell[i] for i in sorted(cell)], np.uint32)
        sizes.append(pack_row(features, counts, content[sum(sizes) :]))
    starts, lengths = np.cumsum([0, *sizes])[:-1], np.array([len(cell) for cell in cells])
    found = dense(PackedCells(content, starts, np.array(sizes), lengths), WIDE)
    for row, cell in zip(found, cells, strict=True):
        assert {int(i): int(row[i]) for i in np.flatnonzero(row)} == cell


@given(st.binary(max_size=60), st.integers(0, 20))
def test_bytes_that_are_no_packed_cell_are_recognised_or_stay_within_bounds(content: bytes, n: int) -> None:
    cell = PackedCells(
        np.frombuffer(content, np.uint8).copy(), np.zeros(1, int), np.array([len(content)]), np.array([n])
    )
    features, counts = np.full(n + 1, 7, np.uint16), np.full(n + 1, 7, np.uint16)
    zeros = 4 * content[: 2 * n].count(0)
    assert unpack(cell, features[:n], counts[:n]) == (len(content) == 2 * n + zeros and len(content) >= 2 * n)
    assert features[n] == counts[n] == 7
