"""Blocks on their way from the chunk that made them to the shard they belong to.

What a chunk staged is complete when its receipt is there; a later run of the same plan starts from the receipts.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa

from cellmill.ingestion.backend import Row
from cellmill.ingestion.chunk import Block
from cellmill.ingestion.counts import Counts
from cellmill.ingestion.plan import SourcePlan
from cellmill.storage import Storage


def stage(storage: Storage, plan: SourcePlan, chunk: int, blocks: dict[int, Block], receipt: Row) -> None:
    """Write a chunk's blocks where the tasks that make shards find them, then its receipt."""
    for shard, block in blocks.items():
        storage.put(f"{prefix(plan)}/{shard:06d}/{chunk:06d}.arrow", _encode(block))
    storage.put(_receipt(plan, chunk), json.dumps(receipt, default=_listed).encode())


def receipt(storage: Storage, plan: SourcePlan, chunk: int) -> Row | None:
    """Return what a chunk reported in an earlier run, None if it has to be read."""
    key = _receipt(plan, chunk)
    if not storage.exists(key):
        return None
    found: dict[str, Any] = json.loads(storage.get(key))
    return {name: np.array(value) if isinstance(value, list) else value for name, value in found.items()}


def staged(storage: Storage, plan: SourcePlan, shard: int) -> list[Block]:
    """Read what all chunks have for a shard, in the order of the source."""
    return [_decode(storage.get(key)) for key in storage.list(f"{prefix(plan)}/{shard:06d}")]


def clear(storage: Storage, plan: SourcePlan) -> None:
    """Delete what was staged for a source."""
    storage.delete_tree(prefix(plan))


def prefix(plan: SourcePlan) -> str:
    """Return the folder of what is staged for a source."""
    # Another division into chunks is another plan: blocks of the two must not meet in one shard.
    return f"staging/{plan.digest[:32]}-{len(plan.chunks)}-{plan.n_shards}"


def _receipt(plan: SourcePlan, chunk: int) -> str:
    return f"{prefix(plan)}/receipts/{chunk:06d}.json"


def _listed(value: Any) -> Any:
    return value.tolist()


def _encode(block: Block) -> bytes:
    counts = block.counts
    cells = block.cells.append_column("__rank", pa.array(block.rank))
    cells = cells.append_column("__indices", _lists(counts.indptr, counts.indices))
    cells = cells.append_column("__data", _lists(counts.indptr, counts.data))
    cells = cells.replace_schema_metadata({"features": str(counts.n_features)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, cells.schema) as writer:
        writer.write_table(cells.combine_chunks())
    return bytes(memoryview(sink.getvalue()))


def _lists(indptr: np.ndarray, values: np.ndarray) -> pa.LargeListArray:
    return pa.LargeListArray.from_arrays(pa.array(indptr), pa.array(values))


def _decode(data: bytes) -> Block:
    table = pa.ipc.open_file(pa.BufferReader(data)).read_all().combine_chunks()
    indices, values = table["__indices"].chunk(0), table["__data"].chunk(0)
    counts = Counts(
        indptr=indices.offsets.to_numpy(),
        indices=indices.values.to_numpy(),
        data=values.values.to_numpy(),
        n_features=int(table.schema.metadata[b"features"]),
    )
    rank = table["__rank"].to_numpy()
    return Block(counts, table.drop_columns(["__rank", "__indices", "__data"]).replace_schema_metadata(None), rank)
