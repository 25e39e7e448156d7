from pathlib import Path

import anndata as ad
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from cellmill.atlas import Atlas, open_shard
from cellmill.atlas.layout import CHUNK, entries_per_file
from cellmill.errors import IntegrityError
from tests.platform.atlas.builders import add_shard, random_counts


@pytest.mark.parametrize(
    ("n_genes", "largest", "dtypes"),
    [(50, 200, ("uint16", "uint8")), (50, 60_000, ("uint16", "uint16")), (70_000, 70_000, ("uint32", "uint32"))],
)
def test_anndata_opens_a_shard(tmp_path: Path, n_genes: int, largest: int, dtypes: tuple[str, str]) -> None:
    atlas = Atlas.create(tmp_path)
    dense = random_counts(20, n_genes, largest=largest, density=min(0.5, 2000 / n_genes)).toarray()
    dense[0, n_genes - 1] = largest
    counts = sparse.csr_matrix(dense)
    entry = add_shard(atlas, "data", counts)
    opened = ad.read_zarr(tmp_path / entry.shard_path)
    assert (opened.X.indices.dtype, opened.X.data.dtype) == dtypes
    assert (counts != opened.X).nnz == 0
    assert opened.var_names[0] == "ENSG00000000000"
    assert opened.var["symbol"].iloc[1] == "GENE1"
    assert opened.var["token"].tolist()[:2] == [8, 9]
    assert opened.obs_names[3] == "data-3"


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 60)), max_size=12))
def test_gather_equals_slicing(tmp_path_factory: pytest.TempPathFactory, runs: list[tuple[int, int]]) -> None:
    path = tmp_path_factory.getbasetemp() / "gather"
    counts = random_counts(301, 40, seed=5)
    atlas = Atlas.open_or_create(path)
    if not atlas.snapshot().shards:
        atlas.commit([add_shard(atlas, "data", counts)])
    shard = open_shard(atlas.storage, atlas.snapshot().shards[0])
    starts = np.array([start for start, _ in runs], dtype=np.int64)
    stops = np.minimum(starts + np.array([length for _, length in runs], dtype=np.int64), 301)
    columns, values, indptr = shard.gather(starts, stops)
    rows = np.concatenate([np.zeros(0, int), *(np.arange(a, b) for a, b in zip(starts, stops, strict=True))])
    expected = counts[rows]
    assert np.array_equal(columns, expected.indices)
    assert np.array_equal(values, expected.data)
    assert np.array_equal(indptr, expected.indptr)


def test_gather_across_chunks_and_with_gaps(tmp_path: Path) -> None:
    atlas = Atlas.create(tmp_path)
    counts = sparse.random(
        4000, 500, density=0.25, format="csr", random_state=1, data_rvs=lambda n: np.arange(n) % 9 + 1
    )
    counts = sparse.csr_matrix(counts.astype(np.uint32))
    assert counts.nnz > 3 * CHUNK
    shard = open_shard(atlas.storage, add_shard(atlas, "data", counts))
    for starts, stops in [
        ([0], [4000]),
        ([10, 11, 3500, 3600], [11, 400, 3501, 4000]),
        (range(0, 4000, 7), range(1, 4001, 7)),
    ]:
        rows = np.concatenate([np.arange(a, b) for a, b in zip(starts, stops, strict=True)])
        columns, values, indptr = shard.gather(list(starts), list(stops))
        expected = counts[rows]
        assert np.array_equal(columns, expected.indices)
        assert np.array_equal(values, expected.data)
        assert np.array_equal(indptr, expected.indptr)
    with pytest.raises(IndexError):
        shard.gather([3999], [4001])


def test_files_of_an_array() -> None:
    assert entries_per_file(1) == CHUNK
    assert entries_per_file(CHUNK + 1) == 2 * CHUNK
    assert entries_per_file(1 << 24) == 1 << 23


def test_a_matrix_without_entries_and_one_with_zeros_as_columns_are_kept(tmp_path: Path) -> None:
    atlas = Atlas.create(tmp_path)
    empty = open_shard(atlas.storage, add_shard(atlas, "empty", sparse.csr_matrix((3, 5), dtype=np.uint32)))
    assert empty.gather([0], [3])[2].tolist() == [0, 0, 0, 0]
    # All column indices are zero: the fill value of the array.
    single = open_shard(atlas.storage, add_shard(atlas, "single", np.ones((4, 1), np.uint32)))
    assert single.gather([1], [4])[1].tolist() == [1, 1, 1]


@pytest.mark.parametrize("name", ["X/indices/c/0", "X/data/c/0", "X/indptr/c/0", "var/token/c/0", "X/data/zarr.json"])
def test_lost_and_flipped_bytes_name_the_shard(tmp_path: Path, name: str) -> None:
    atlas = Atlas.create(tmp_path)
    entry = add_shard(atlas, "data", random_counts(30, 20))
    path = tmp_path / entry.shard_path / name
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(IntegrityError) as caught:
        open_shard(atlas.storage, entry).gather([0], [30])
    assert entry.digest in caught.value.where
    rng = np.random.default_rng(0)
    for position in rng.integers(0, len(content), 40) if name.endswith("0") else ():
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        with pytest.raises(IntegrityError) as caught:
            open_shard(atlas.storage, entry).gather([0], [30])
        assert entry.digest in caught.value.where
    path.write_bytes(content)
    open_shard(atlas.storage, entry).gather([0], [30])
