"""Small synthetic shards, written through the atlas's own functions."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from scipy import sparse

from cellmill.atlas import Atlas, ShardEntry
from cellmill.atlas.cells import write_cells
from cellmill.atlas.content import cell_ids, content_hash, feature_keys, hash_bytes
from cellmill.atlas.summary import summarise
from cellmill.atlas.writing import checksum, shard_keys, write_counts
from cellmill.genes import Feature


def make_features(numbers: Sequence[int]) -> list[Feature]:
    return [Feature(f"ENSG{number:011d}", f"GENE{number}", organism="human", release="test") for number in numbers]


def random_counts(n_cells: int, n_genes: int, seed: int = 0, largest: int = 9, density: float = 0.3) -> Any:
    rng = np.random.default_rng(seed)
    dense = rng.integers(1, largest + 1, (n_cells, n_genes)) * (rng.random((n_cells, n_genes)) < density)
    return sparse.csr_matrix(dense.astype(np.uint32))


def add_shard(
    atlas: Atlas,
    dataset: str,
    counts: Any,
    *,
    genes: Sequence[int] | None = None,
    digest: str = "",
    obs: Mapping[str, Any] | None = None,
    licence: str = "CC0",
) -> ShardEntry:
    """Write a shard and its metadata; the caller commits the entry."""
    matrix = sparse.csr_matrix(counts)
    n = matrix.shape[0]
    features = make_features(range(matrix.shape[1]) if genes is None else genes)
    vocabulary = atlas.vocabulary_store.allocate(features)
    tokens = vocabulary.lookup([feature.id for feature in features]).astype(np.uint32)
    digest = digest or hashlib.sha256(f"{dataset} {n} {matrix.sum()}".encode()).hexdigest()[:32]
    source = (digest * 2)[:64]
    barcodes = [f"{dataset}-{row}" for row in range(n)]
    write_counts(
        atlas.storage,
        f"shards/{dataset}/{digest}.zarr",
        indptr=matrix.indptr.astype(np.int64),
        indices=matrix.indices,
        data=matrix.data,
        features=features,
        tokens=tokens,
        barcodes=barcodes,
    )
    hashes = content_hash(
        matrix.indptr.astype(np.int64), matrix.indices, matrix.data, feature_keys([f.id for f in features])
    )
    table = pa.table(
        {
            "cell_id": cell_ids(source, np.arange(n)),
            "dataset": [dataset] * n,
            "shard": [digest] * n,
            "row": np.arange(n, dtype=np.int32),
            "barcode": barcodes,
            "source_row": np.arange(n),
            "n_genes": np.diff(matrix.indptr).astype(np.int32),
            "n_features": np.diff(matrix.indptr).astype(np.int32),
            "n_counts": np.asarray(matrix.sum(axis=1)).ravel().astype(np.int64),
            "content_hash": pa.array([bytes(row) for row in hash_bytes(hashes)], pa.binary(16)),
            **(obs or {}),
        }
    )
    write_cells(atlas.storage, f"cells/{dataset}/{digest}.parquet", table)
    total, size = checksum(atlas.storage, shard_keys(atlas.storage, dataset, digest))
    return ShardEntry(
        dataset=dataset,
        digest=digest,
        n_cells=n,
        n_rows=n,
        n_features=len(features),
        nnz=matrix.nnz,
        max_features=int(np.diff(matrix.indptr).max(initial=0)),
        bytes=size,
        checksum=total,
        organism="human",
        source_url=f"/data/{dataset}.h5ad",
        source_digest=source,
        licence=licence,
        config_digest="c",
        recipe=1,
        vocabulary_size=vocabulary.size,
        vocabulary_digest=vocabulary.digest(),
        **summarise(table),
    )


def small_atlas(path: Path) -> Atlas:
    """Two data sets of 60 and 40 cells with overlapping genes and different obs columns."""
    atlas = Atlas.create(path)
    first = add_shard(
        atlas,
        "alpha",
        random_counts(60, 30, seed=1),
        obs={"donor": ["d1", "d2", None] * 20, "age": list(range(60))},
        licence="MIT",
    )
    second = add_shard(
        atlas,
        "beta",
        random_counts(40, 25, seed=2, largest=700),
        genes=range(20, 45),
        obs={"donor": ["d3"] * 40, "fresh": [True, False] * 20},
    )
    atlas.commit([first, second], message="two data sets")
    return atlas
