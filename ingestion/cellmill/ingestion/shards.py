"""Writing a shard of a data set, and recognising one that is already there."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cellmill.atlas import ShardEntry
from cellmill.atlas.cells import FIXED
from cellmill.atlas.sealing import seal_shard, sealed_shard
from cellmill.atlas.writing import CountsWriter
from cellmill.genes import Vocabulary
from cellmill.ingestion.merging import Merged
from cellmill.ingestion.plan import RECIPE, SourcePlan
from cellmill.storage import Storage


def write(storage: Storage, plan: SourcePlan, number: int, cells: Merged, vocabulary: Vocabulary) -> ShardEntry:
    """Write a shard and, after it, its cells' metadata, which marks it as complete."""
    features = plan.mapping.features
    tokens = vocabulary.lookup([feature.id for feature in features]).astype(np.uint32)
    entry = draft(plan, number, np.diff(cells.indptr), tokens, vocabulary)
    # What an interrupted run left is overwritten: the same input makes the same files, byte for byte.
    size = {"n_cells": entry.n_rows, "n_features": entry.n_features, "nnz": entry.nnz}
    writer = CountsWriter(storage, entry.shard_path, **size, largest=cells.largest)
    for indices, data in cells.entries():
        writer.append(indices, data)
    known = writer.finish(cells.indptr, features, tokens, cells.cells["barcode"].to_pylist())
    return seal_shard(storage, entry, as_table(cells.cells, entry), known)


def draft(
    plan: SourcePlan,
    number: int,
    lengths: npt.NDArray[Any],
    tokens: npt.NDArray[np.uint32],
    vocabulary: Vocabulary,
    layout: str = "zarr",
) -> ShardEntry:
    """Return the catalog row of a shard of which no file is written yet.

    Parameters
    ----------
    plan, number
        The source, and which of its shards.
    lengths : int [n]
        Expressed features of each cell.
    tokens : uint32 [n_features]
        Of the source's features.
    vocabulary
        Holds them.
    layout
        How the counts lie.
    """
    # The part of the vocabulary that the shard needs: the same whenever the shard is written.
    needed = vocabulary.prefix(int(tokens.max()) + 1)
    return ShardEntry(
        dataset=plan.dataset,
        digest=plan.shard_digest(number),
        n_cells=lengths.size,
        n_rows=lengths.size,
        n_features=tokens.size,
        nnz=int(lengths.sum(dtype=np.int64)),
        max_features=int(lengths.max(initial=0)),
        bytes=0,
        checksum="",
        organism=plan.mapping.organism or plan.organism,
        licence=plan.config.licence,
        source_url=plan.url,
        source_digest=plan.source_digest,
        config_digest=plan.digest,
        recipe=RECIPE,
        vocabulary_size=needed.size,
        vocabulary_digest=needed.digest(),
        layout=layout,
        files=plan.files,
    )


def as_table(cells: pa.Table, entry: ShardEntry) -> pa.Table:
    """Return the cells' metadata as it is written: the columns of every shard first, texts as texts."""
    n = entry.n_rows
    own = {
        "shard": pa.array([entry.digest] * n),
        "row": pa.array(np.arange(n, dtype=np.int32)),
    }
    fixed = {name: own.get(name, cells[name] if name in cells.column_names else None) for name in FIXED.names}
    others = {name: cells[name] for name in cells.column_names if name not in fixed}
    # Dictionaries depend on how the source was cut into chunks; text does not.
    return pa.table({name: _as_text(column) for name, column in {**fixed, **others}.items()}).combine_chunks()


def _as_text(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    return column.cast(pa.string()) if pa.types.is_dictionary(column.type) else column


def is_written(storage: Storage, plan: SourcePlan, number: int) -> bool:
    """Return whether an earlier run completed the shard, committed or not."""
    return storage.exists(f"cells/{plan.dataset}/{plan.shard_digest(number)}.parquet")


def existing(storage: Storage, plan: SourcePlan, number: int) -> ShardEntry | None:
    """Return the shard if an earlier run completed it, committed or not, and it is still as that run left it."""
    return sealed_shard(storage, f"cells/{plan.dataset}/{plan.shard_digest(number)}.parquet")
