"""Writing a shard of a data set, and recognising one that is already there."""

from __future__ import annotations

import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cellmill.atlas import ShardEntry
from cellmill.atlas.cells import FIXED, write_cells
from cellmill.atlas.chunk_writing import Digests
from cellmill.atlas.summary import summarise
from cellmill.atlas.writing import CountsWriter, checksum, read_digests, shard_keys
from cellmill.genes import Vocabulary
from cellmill.ingestion.merging import Merged
from cellmill.ingestion.plan import RECIPE, SourcePlan
from cellmill.storage import Storage

_ENTRY = b"cellmill.entry"


def write(storage: Storage, plan: SourcePlan, number: int, cells: Merged, vocabulary: Vocabulary) -> ShardEntry:
    """Write a shard and, after it, its cells' metadata, which marks it as complete."""
    digest = plan.shard_digest(number)
    features = plan.mapping.features
    tokens = vocabulary.lookup([feature.id for feature in features])
    # The part of the vocabulary that the shard needs: the same whenever the shard is written.
    needed = vocabulary.prefix(int(tokens.max()) + 1)
    draft = ShardEntry(
        dataset=plan.dataset,
        digest=digest,
        n_cells=cells.n_cells,
        n_rows=cells.n_cells,
        n_features=len(features),
        nnz=int(cells.indptr[-1]),
        max_genes=int(np.diff(cells.indptr).max(initial=0)),
        bytes=0,
        checksum="",
        organism=plan.mapping.organism or plan.organism,
        licence=plan.config.licence,
        source_url=plan.url,
        source_sha256=plan.sha256,
        config_digest=plan.digest,
        recipe=RECIPE,
        vocabulary_size=needed.size,
        vocabulary_digest=needed.digest(),
    )
    # What an interrupted run left is overwritten: the same input makes the same files, byte for byte.
    size = {"n_cells": draft.n_rows, "n_features": draft.n_features, "nnz": draft.nnz}
    writer = CountsWriter(storage, draft.shard_path, **size, largest=cells.largest)
    for indices, data in cells.entries():
        writer.append(indices, data)
    known = writer.finish(cells.indptr, features, tokens.astype(np.uint32), cells.cells["barcode"].to_pylist())
    table = _table(cells.cells, draft)
    # The metadata says what the other files are, so that a later run can tell whether they still are.
    draft = draft.model_copy(update={**summarise(table), "checksum": checksum(storage, known, known)[0]})
    write_cells(storage, draft.cells_path, table.replace_schema_metadata({_ENTRY: draft.model_dump_json()}))
    return _sealed(storage, draft, known)


def _sealed(storage: Storage, draft: ShardEntry, known: Digests) -> ShardEntry:
    digest, size = checksum(storage, shard_keys(storage, draft.dataset, draft.digest), known)
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return draft.model_copy(update={"bytes": size, "checksum": digest, "created": created})


def _table(cells: pa.Table, entry: ShardEntry) -> pa.Table:
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
    if not is_written(storage, plan, number):
        return None
    digest = plan.shard_digest(number)
    key = f"cells/{plan.dataset}/{digest}.parquet"
    try:
        metadata = pq.read_schema(pa.BufferReader(storage.get(key))).metadata
        draft = ShardEntry.model_validate_json(metadata[_ENTRY])
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
        return None
    known = read_digests(storage, storage.list(draft.shard_path))
    return _sealed(storage, draft, known) if checksum(storage, known, known)[0] == draft.checksum else None
