"""Blocks on their way from the chunk that made them to the shard they belong to."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from scipy import sparse

from cellmill.ingestion.chunk import Block
from cellmill.ingestion.plan import SourcePlan
from cellmill.storage import Storage


def stage(storage: Storage, plan: SourcePlan, chunk: int, blocks: dict[int, Block]) -> None:
    """Write a chunk's blocks where the tasks that make shards find them."""
    for shard, block in blocks.items():
        storage.put(_key(plan, shard, chunk), _encode(block))


def staged(storage: Storage, plan: SourcePlan, shard: int) -> list[Block]:
    """Read what all chunks have for a shard, in the order of the source."""
    return [_decode(storage.get(key)) for key in storage.list(f"{_prefix(plan)}/{shard:06d}")]


def clear(storage: Storage, plan: SourcePlan) -> None:
    """Delete what was staged for a source."""
    storage.delete_tree(_prefix(plan))


def _prefix(plan: SourcePlan) -> str:
    return f"staging/{plan.digest[:32]}"


def _key(plan: SourcePlan, shard: int, chunk: int) -> str:
    return f"{_prefix(plan)}/{shard:06d}/{chunk:06d}.arrow"


def _encode(block: Block) -> bytes:
    matrix = block.matrix
    lengths = np.diff(matrix.indptr)
    cells = block.cells.append_column("__rank", pa.array(block.rank))
    cells = cells.append_column("__indices", _lists(lengths, matrix.indices))
    cells = cells.append_column("__data", _lists(lengths, matrix.data))
    cells = cells.replace_schema_metadata({"columns": str(matrix.shape[1])})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, cells.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
        writer.write_table(cells)
    return bytes(sink.getvalue())


def _lists(lengths: np.ndarray, values: np.ndarray) -> pa.LargeListArray:
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values))


def _decode(data: bytes) -> Block:
    table = pa.ipc.open_file(pa.BufferReader(data)).read_all().combine_chunks()
    columns = int(table.schema.metadata[b"columns"])
    indices, counts = table["__indices"].chunk(0), table["__data"].chunk(0)
    matrix = sparse.csr_matrix(
        (counts.values.to_numpy(), indices.values.to_numpy(), indices.offsets.to_numpy()),
        shape=(table.num_rows, columns),
    )
    rank = table["__rank"].to_numpy()
    return Block(matrix, table.drop_columns(["__rank", "__indices", "__data"]).replace_schema_metadata(None), rank)
