"""A shard without some of its rows: a new shard, so that the old one can be deleted with all that it holds."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cellmill.atlas.cells import CellsFile, write_cells
from cellmill.atlas.entry import ShardEntry
from cellmill.atlas.measured import MEASURED
from cellmill.atlas.overlay import Overlay, read_overlay
from cellmill.atlas.part import encode_parts, joined
from cellmill.atlas.part_rows import overlaid, part_of_rows
from cellmill.atlas.shard import open_shard
from cellmill.atlas.summary import summarise
from cellmill.atlas.writing import checksum, shard_keys, write_counts
from cellmill.genes import N_SPECIALS, Vocabulary
from cellmill.storage import Storage

_ENTRY = b"cellmill.entry"


def without_rows(
    storage: Storage,
    vocabulary: Vocabulary,
    entry: ShardEntry,
    gone: npt.NDArray[np.bool_],
    withdrawals: Iterable[int],
) -> ShardEntry:
    """Write a shard again without some rows, and return its row of the catalog, which names no run of hashes.

    Parameters
    ----------
    storage
        The atlas's storage.
    vocabulary
        The atlas's.
    entry
        The shard.
    gone : bool [n_rows]
        Rows that the new shard does not have; not all.
    withdrawals
        Numbers of the withdrawals that took them.
    """
    kept = ~gone
    digest = hashlib.sha256(entry.digest.encode() + np.packbits(kept).tobytes()).hexdigest()[:32]
    draft = entry.model_copy(
        update={
            "digest": digest,
            "origin": entry.origin or entry.digest,
            **_taken(storage, entry, gone, ",".join(map(str, withdrawals))),
            "n_rows": int(kept.sum()),
            "hash_run": "",
            "layout": "zarr",
        }
    )
    if storage.exists(draft.cells_path):
        metadata = pq.read_schema(pa.BufferReader(storage.get(draft.cells_path))).metadata
        written = ShardEntry.model_validate_json(metadata[_ENTRY])
    else:
        written = _write(storage, vocabulary, entry, draft, kept)
    total, size = checksum(storage, shard_keys(storage, draft.dataset, digest))
    rewritten = draft.model_copy(
        update={
            "nnz": written.nnz,
            "max_features": written.max_features,
            "columns": written.columns,
            "statistics": written.statistics,
            "bytes": size,
            "checksum": total,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
    )
    return overlaid(storage, rewritten, _overlay(storage, entry, kept))


def _write(
    storage: Storage, vocabulary: Vocabulary, entry: ShardEntry, draft: ShardEntry, kept: npt.NDArray[np.bool_]
) -> ShardEntry:
    shard = open_shard(storage, entry)
    edges = np.flatnonzero(np.diff(kept, prepend=False, append=False))
    indices, data, indptr = shard.gather(edges[::2], edges[1::2])
    file = CellsFile(storage, entry)
    cells = file.read(file.schema.names).filter(pa.array(kept))
    n = cells.num_rows
    for name, column in (("shard", [draft.digest] * n), ("row", np.arange(n, dtype=np.int32))):
        cells = cells.set_column(cells.schema.get_field_index(name), name, pa.array(column))
    written = draft.model_copy(
        update={
            "n_cells": n,
            "overlay": "",
            "nnz": int(data.size),
            "max_features": int(np.diff(indptr).max(initial=0)),
            # Told anew: bounds of the old rows may be names of cells that are gone.
            **summarise(cells),
        }
    )
    write_counts(
        storage,
        draft.shard_path,
        indptr=indptr,
        indices=indices,
        data=data,
        features=[vocabulary.features[token - N_SPECIALS] for token in shard.tokens.tolist()],
        tokens=shard.tokens,
        barcodes=cells["barcode"].to_pylist(),
    )
    metadata = {_ENTRY: written.model_dump_json().encode()}
    if entry.parts:
        metadata[MEASURED] = file.schema.metadata[MEASURED]
    write_cells(storage, draft.cells_path, cells.combine_chunks().replace_schema_metadata(metadata))
    return written


def _taken(storage: Storage, entry: ShardEntry, gone: npt.NDArray[np.bool_], withdrawals: str) -> dict[str, str]:
    """Return the fields that say of which sources there are how many rows, and which withdrawals took others."""
    if not entry.parts:
        return {"withdrawals": joined([entry.withdrawals, withdrawals])}
    lost = np.bincount(part_of_rows(storage, entry)[gone], minlength=len(entry.sources)).tolist()
    parts = [
        part.model_copy(
            update={
                "n_rows": part.n_rows - n,
                "withdrawals": joined([part.withdrawals, withdrawals if n else ""]),
            }
        )
        for part, n in zip(entry.sources, lost, strict=True)
    ]
    return {"parts": encode_parts(parts)}


def _overlay(storage: Storage, entry: ShardEntry, kept: npt.NDArray[np.bool_]) -> Overlay:
    """Return which rows of the new shard are hidden or marked: those that were before."""
    old = read_overlay(storage, entry)
    place = (np.cumsum(kept) - 1).astype(np.uint32)
    return Overlay(place[old.hidden[kept[old.hidden]]], place[old.duplicate[kept[old.duplicate]]])
