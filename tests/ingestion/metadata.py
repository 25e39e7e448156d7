"""Shards that are metadata alone: enough for everything that never looks at counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cellmill.atlas import ShardEntry
from cellmill.atlas.cells import write_cells
from cellmill.atlas.content import hash_bytes
from cellmill.storage import Storage


def metadata_shard(
    storage: Storage,
    dataset: str,
    digest: str,
    hashes: npt.NDArray[np.uint64],
    *,
    n_genes: Any = 1000,
    barcodes: list[str] | None = None,
    source_rows: Any = None,
) -> ShardEntry:
    """Write the metadata of cells with given content hashes, uint64 [n, 2], and return their catalog row."""
    n = len(hashes)
    rows = np.arange(n, dtype=np.int64)
    table = pa.table(
        {
            "cell_id": rows.astype(np.uint64),
            "dataset": [dataset] * n,
            "shard": [digest] * n,
            "row": rows.astype(np.int32),
            "barcode": barcodes or [f"{dataset}-{i}" for i in range(n)],
            "source_row": rows if source_rows is None else np.asarray(source_rows),
            "n_genes": np.broadcast_to(np.asarray(n_genes, np.int32), n),
            "n_counts": rows,
            "n_features": np.broadcast_to(np.asarray(n_genes, np.int32), n),
            "content_hash": pa.Array.from_buffers(pa.binary(16), n, [None, pa.py_buffer(hash_bytes(hashes))]),
        }
    )
    write_cells(storage, f"cells/{dataset}/{digest}.parquet", table)
    return ShardEntry(
        dataset=dataset,
        digest=digest,
        n_cells=n,
        n_rows=n,
        n_features=1,
        nnz=n,
        max_features=1,
        bytes=1,
        checksum=digest,
        organism="human",
        source_url=dataset,
        source_digest=digest,
        licence="CC0",
        config_digest=f"{dataset}/{digest.partition('-')[0]}",
        recipe=1,
        vocabulary_size=8,
        vocabulary_digest="v",
    )
