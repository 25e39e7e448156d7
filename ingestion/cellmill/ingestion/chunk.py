"""One chunk of a source: read, checked, harmonised, judged, hashed, and dealt out to shards."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from scipy import sparse

from cellmill.atlas.content import cell_ids, content_hash, feature_keys, hash_bytes
from cellmill.counts import check_counts
from cellmill.ingestion.config import QualityConfig
from cellmill.ingestion.obs import obs_table
from cellmill.ingestion.plan import SourcePlan, shard_of
from cellmill.ingestion.quality import judge
from cellmill.ingestion.sources import Source
from cellmill.ingestion.sources.h5ad import open_h5ad


@dataclass(frozen=True)
class Block:
    """Harmonised cells, in any number.

    Attributes
    ----------
    matrix : csr [n, n_features]
        Raw counts.
    cells
        Metadata, one row a cell, without ``shard`` and ``row``.
    rank : uint64 [n]
        By which cells are ordered in their shard.
    """

    matrix: sparse.csr_matrix
    cells: pa.Table
    rank: npt.NDArray[np.uint64]


@dataclass(frozen=True)
class ChunkResult:
    """What became of a chunk.

    Attributes
    ----------
    blocks
        Cells by shard number.
    umis : float64 [n_in]
        Sum of each input column.
    dropped
        Cells left out, by reason.
    """

    blocks: dict[int, Block]
    umis: npt.NDArray[np.float64]
    dropped: dict[str, int]


def process_chunk(plan: SourcePlan, source: Source, start: int, stop: int, quality: QualityConfig) -> ChunkResult:
    """Read rows ``[start, stop)`` of a source and deal the cells out to shards.

    Raises
    ------
    CountsError
        A value in these rows is no raw count.
    """
    raw = source.rows(plan.place, start, stop)
    raw.data = check_counts(raw.data, f"{plan.url}: {plan.place}, cells {start} to {stop - 1}")
    umis = np.zeros(raw.shape[1])
    np.add.at(umis, raw.indices, raw.data)
    matrix = plan.mapping.apply(raw)
    matrix.eliminate_zeros()
    n_genes = np.diff(matrix.indptr).astype(np.int64)
    n_counts = np.asarray(matrix.sum(axis=1, dtype=np.int64)).ravel()
    kept, dropped = judge(n_genes, n_counts, quality)
    rows = np.arange(start, stop, dtype=np.int64)[kept]
    matrix = matrix[kept]
    cells = _metadata(plan, source, rows, n_genes[kept], n_counts[kept], matrix)
    shard, rank = shard_of(rows, plan.shuffle_key, plan.n_shards)
    blocks = {}
    for number in np.unique(shard):
        mine = np.flatnonzero(shard == number)
        blocks[int(number)] = Block(matrix[mine], cells.take(pa.array(mine)), rank[mine])
    return ChunkResult(blocks, umis, dropped)


@lru_cache(maxsize=4)
def open_source(path: Path, dataset: str) -> Source:
    """Open a file, once in a process for all of its chunks."""
    return open_h5ad(path, dataset)


def join(blocks: list[Block]) -> Block:
    """Put the blocks of one shard together and bring its cells into their final order."""
    rank = np.concatenate([block.rank for block in blocks])
    order = np.argsort(rank, kind="stable")
    matrix = sparse.vstack([block.matrix for block in blocks], format="csr")[order]
    cells = pa.concat_tables([block.cells for block in blocks], promote_options="permissive")
    return Block(matrix, cells.take(pa.array(order)), rank[order])


def _metadata(
    plan: SourcePlan,
    source: Source,
    rows: npt.NDArray[np.int64],
    n_genes: npt.NDArray[np.int64],
    n_counts: npt.NDArray[np.int64],
    matrix: sparse.csr_matrix,
) -> pa.Table:
    obs: pd.DataFrame = source.obs().iloc[rows]
    keys = feature_keys([feature.id for feature in plan.mapping.features])
    digest = content_hash(matrix.indptr.astype(np.int64), matrix.indices, matrix.data, keys)
    buffer = pa.py_buffer(np.ascontiguousarray(hash_bytes(digest)))
    hashes = pa.Array.from_buffers(pa.binary(16), len(rows), [None, buffer])
    own = {
        "cell_id": pa.array(cell_ids(plan.sha256, rows)),
        "dataset": pa.array([plan.dataset] * len(rows)),
        "barcode": pa.array([str(name) for name in obs.index]),
        "source_row": pa.array(rows),
        "n_genes": pa.array(n_genes.astype(np.int32)),
        "n_counts": pa.array(n_counts),
        "content_hash": hashes,
    }
    return pa.table({**own, **obs_table(obs, plan.config.obs)})
