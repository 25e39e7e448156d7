"""One chunk of a source: read, checked, harmonised, judged, hashed, and dealt out to shards."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cellmill.atlas.content import cell_ids, hash_bytes
from cellmill.ingestion.config import QualityConfig
from cellmill.ingestion.filtering import parse_where, wanted
from cellmill.ingestion.harmonising import Harmoniser
from cellmill.ingestion.obs import obs_table
from cellmill.ingestion.packing import PackedCells, ranges
from cellmill.ingestion.plan import SourcePlan, shard_of
from cellmill.ingestion.quality import Measures, judge
from cellmill.ingestion.sources import Source


@dataclass(frozen=True)
class Block:
    """Harmonised cells of one shard, in the order of their ranks.

    Attributes
    ----------
    packed
        Features and counts.
    cells
        Metadata, one row a cell, without ``shard`` and ``row``.
    rank : uint64 [n]
        By which cells are ordered in their shard.
    largest
        The largest count.
    """

    packed: PackedCells
    cells: pa.Table
    rank: npt.NDArray[np.uint64]
    largest: int


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
    SourceError
        The rows cannot be read.
    CountsError
        A value in these rows is no raw count.
    """
    starts = source.starts(plan.place)
    size = int(starts[stop] - starts[start])
    harmoniser = Harmoniser(plan.mapping, plan.feature_kinds, plan.feature_keys, stop - start, size)
    # Raw values are wide, and copies of them are made: only a few cells are raw at a time.
    for a, b in ranges(starts[start + 1 : stop + 1] - starts[start], plan.entries_at_once):
        where = f"{plan.url}: {plan.place}, cells {start + a} to {start + b - 1}"
        harmoniser.add(source.rows(plan.place, start + a, start + b), where)
    measures = harmoniser.measures()
    inside = wanted(source, parse_where(plan.config.where, source), start, stop)
    kept, dropped = judge(measures, quality, inside)
    rows = np.flatnonzero(kept)
    shard, rank = shard_of(rows + start, plan.shuffle_key, plan.n_shards)
    order = np.lexsort((rank, shard))
    rows, shard, rank = rows[order], shard[order], rank[order]
    cells = _metadata(plan, source, start, rows, measures, harmoniser.hashes[rows])
    packed, largest = harmoniser.packed(), harmoniser.largest
    bounds = np.searchsorted(shard, np.arange(plan.n_shards + 1))
    blocks = {
        number: Block(packed.take(rows[a:b]), cells.slice(a, b - a), rank[a:b], int(largest[rows[a:b]].max()))
        for number, (a, b) in enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True))
        if b > a
    }
    return ChunkResult(blocks, harmoniser.umis, dropped)


def _metadata(
    plan: SourcePlan,
    source: Source,
    start: int,
    rows: npt.NDArray[np.int64],
    measures: Measures,
    hashes: npt.NDArray[np.uint64],
) -> pa.Table:
    """Return the metadata of rows of a chunk that begins at `start`."""
    obs = source.obs(tuple(dict.fromkeys(plan.columns.values())), start, start + measures.n_genes.size).iloc[rows]
    buffer = pa.py_buffer(hash_bytes(hashes))
    own = {
        "cell_id": pa.array(cell_ids(plan.source_digest, start + rows)),
        "dataset": pa.array([plan.dataset] * len(rows), pa.string()),
        "barcode": pa.array(obs.index.astype(str).to_numpy(), pa.string()),
        "source_row": pa.array(start + rows),
        "n_genes": pa.array(measures.n_genes[rows].astype(np.int32)),
        "n_counts": pa.array(measures.n_counts[rows]),
        "n_features": pa.array(measures.n_features[rows].astype(np.int32)),
        "mito_share": pa.array(measures.mito_share[rows], from_pandas=True),
        "content_hash": pa.Array.from_buffers(pa.binary(16), len(rows), [None, buffer]),
    }
    return pa.table({**own, **obs_table(obs, plan.columns, where=source.url)})
