"""A synthetic atlas like those of the field: about 1,500 of 20,000 genes a cell, power-law genes, mostly ones."""

from __future__ import annotations

import hashlib
import shutil
import warnings
from pathlib import Path
from typing import Any, Literal

import anndata as ad
import numpy as np
import pandas as pd
import pyarrow as pa
from scipy import sparse

from cellmill.atlas import Atlas, ShardEntry
from cellmill.atlas.cells import write_cells
from cellmill.atlas.content import cell_ids
from cellmill.atlas.writing import checksum, shard_keys, write_counts
from cellmill.genes import Feature, load_table
from cellmill.ingestion import IngestConfig, SourceConfig
from cellmill.ingestion.config import DuplicateConfig
from cellmill.ingestion.linking import link

GENES = 20_000
POOL = 8192
_DONORS = 40


def counts(n: int, seed: int = 0) -> Any:
    """Return uint16 csr [n x GENES]; above 8,192 cells rows are drawn again from those that were made."""
    rng = np.random.default_rng(seed)
    share = np.arange(1, GENES + 1) ** -0.9
    rng.shuffle(share)
    share /= share.sum()
    made = min(n, POOL)
    parts = []
    for start in range(0, made, 256):
        rows = min(256, made - start)
        depth = rng.lognormal(np.log(2700), 0.45, (rows, 1))
        rate = share * depth * rng.gamma(2, 0.5, (rows, GENES))
        parts.append(sparse.csr_matrix(np.minimum(rng.poisson(rate), 65_535).astype(np.uint16)))
    pool = sparse.vstack(parts, format="csr")
    return pool if n <= made else pool[rng.integers(0, made, n)]


def write_atlas(path: Path, n_cells: int, shard_cells: int = 16_384, n_features: int = GENES) -> Atlas:
    """Write an atlas with a data set for each shard, as if ingested one by one, and return it.

    With more features than genes, those that are measured lie far apart in the vocabulary.
    """
    atlas = Atlas.create(path)
    known = [Feature(f"ENSG{i:011d}", f"GENE{i}", organism="human", release="synthetic") for i in range(n_features)]
    vocabulary = atlas.vocabulary_store.allocate(known)
    features = known[:: n_features // GENES][:GENES]
    tokens = vocabulary.lookup([feature.id for feature in features]).astype(np.uint32)
    entries = []
    for number, start in enumerate(range(0, n_cells, shard_cells)):
        matrix = counts(min(shard_cells, n_cells - start), seed=number)
        entries.append(_shard(atlas, f"set{number:03}", matrix, features, tokens))
    atlas.commit(entries, message="synthetic")
    return atlas


def write_linked(path: Path, stores: Path, n_cells: int, zarr_format: Literal[2, 3], shard_cells: int = 16_384) -> None:
    """Write the same cells as AnnData stores by ``write_zarr``, float32 as users have them, and link these."""
    for left in (path, stores):
        shutil.rmtree(left, ignore_errors=True)
    stores.mkdir(parents=True)
    genes = pd.DataFrame(index=load_table("human").ids[:GENES])
    sources = []
    for number, start in enumerate(range(0, n_cells, shard_cells)):
        matrix = counts(min(shard_cells, n_cells - start), seed=number).astype(np.float32)
        n = matrix.shape[0]
        obs = pd.DataFrame(
            {"donor": _donors(f"set{number:03}", n)}, index=[f"set{number:03}-{row}" for row in range(n)]
        )
        store = stores / f"set{number:03}.zarr"
        with ad.settings.override(zarr_write_format=zarr_format), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what will be the default some day
            ad.AnnData(matrix, obs=obs, var=genes).write_zarr(store)
        sources.append(SourceConfig(path=str(store), organism="human", licence="CC0-1.0", obs={"donor": "donor"}))
    every = DuplicateConfig(policy="keep")
    link(
        IngestConfig(atlas=str(path), sources=tuple(sources), duplicates=every, backend="local", output=stores / "run")
    )


def _donors(dataset: str, n: int) -> list[str]:
    return [f"{dataset}-donor{i}" for i in np.random.default_rng(0).integers(0, _DONORS, n)]


def _shard(atlas: Atlas, dataset: str, matrix: Any, features: list[Feature], tokens: Any) -> ShardEntry:
    n = matrix.shape[0]
    source = hashlib.sha256(dataset.encode()).hexdigest()
    digest = source[:32]
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
            "content_hash": pa.array([bytes(16)] * n, pa.binary(16)),
            "donor": _donors(dataset, n),
        }
    )
    write_cells(atlas.storage, f"cells/{dataset}/{digest}.parquet", table)
    total, size = checksum(atlas.storage, shard_keys(atlas.storage, dataset, digest))
    vocabulary = atlas.vocabulary()
    return ShardEntry(
        dataset=dataset,
        digest=digest,
        n_cells=n,
        n_rows=n,
        n_features=len(features),
        nnz=int(matrix.nnz),
        max_features=int(np.diff(matrix.indptr).max()),
        bytes=size,
        checksum=total,
        organism="human",
        source_url="synthetic",
        source_digest=source,
        licence="CC0-1.0",
        config_digest="synthetic",
        recipe=0,
        vocabulary_size=vocabulary.size,
        vocabulary_digest=vocabulary.digest(),
    )
