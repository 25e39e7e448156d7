"""Blocks on their way from the chunk that made them to the shard they belong to.

What a chunk staged is complete when its receipt is there; a later run of the same plan starts from the receipts.
A block is one file: features, counts, metadata as Arrow, and what is needed to find and to check them. Of many blocks,
only the metadata is ever in memory at once.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cellmill.errors import IntegrityError, SourceError
from cellmill.ingestion.backend import Row
from cellmill.ingestion.chunk import Block
from cellmill.ingestion.plan import SourcePlan
from cellmill.storage import Storage

_FOOTER = struct.Struct("<8Q")
_ENTRIES_AT_ONCE = 1 << 20
_RANK, _LENGTH = "__rank", "__length"


def stage(storage: Storage, plan: SourcePlan, chunk: int, blocks: Iterable[tuple[int, Block]], receipt: Row) -> None:
    """Write a chunk's blocks where the tasks that make shards find them, then its receipt."""
    for shard, block in blocks:
        storage.put_parts(f"{prefix(plan)}/{shard:06d}/{chunk:06d}.block", _encode(block))
    storage.put(_receipt(plan, chunk), json.dumps(receipt, default=_listed).encode())


def receipt(storage: Storage, plan: SourcePlan, chunk: int) -> Row | None:
    """Return what a chunk reported in an earlier run, None if it has to be read."""
    key = _receipt(plan, chunk)
    if not storage.exists(key):
        return None
    found: dict[str, Any] = json.loads(storage.get(key))
    return {name: np.array(value) if isinstance(value, list) else value for name, value in found.items()}


def staged(storage: Storage, plan: SourcePlan, shard: int) -> list[StagedBlock]:
    """Return what all chunks have for a shard, in the order of the source."""
    return [StagedBlock.open(storage, key) for key in storage.list(f"{prefix(plan)}/{shard:06d}")]


def clear(storage: Storage, plan: SourcePlan) -> None:
    """Delete what was staged for a source."""
    storage.delete_tree(prefix(plan))


@dataclass(frozen=True)
class StagedBlock:
    """The cells of a shard that one chunk had, in the order of their ranks; counts stay where they are.

    Parameters
    ----------
    storage, key
        The file.
    cells
        Metadata.
    rank : uint64 [n]
        Ascending.
    lengths : int64 [n]
        Entries of each cell.
    index_dtype, count_dtype
        Of features and counts.
    largest
        The largest count.
    checksums
        The crc32c of features and counts.
    """

    storage: Storage
    key: str
    cells: pa.Table
    rank: npt.NDArray[np.uint64]
    lengths: npt.NDArray[np.int64]
    index_dtype: np.dtype[Any]
    count_dtype: np.dtype[Any]
    largest: int
    checksums: tuple[int, int]

    @classmethod
    def open(cls, storage: Storage, key: str) -> StagedBlock:
        """Read the metadata of a block.

        Raises
        ------
        IntegrityError
            It is not as it was written.
        """
        foot = storage.get_tail(key, _FOOTER.size)
        if len(foot) != _FOOTER.size:
            raise damaged(storage, key)
        nnz, index_size, count_size, size, largest, *checksums = _FOOTER.unpack(foot)
        start = nnz * (index_size + count_size)
        (about,) = _ranges(storage, key, [start], [start + size])
        if google_crc32c.value(about) != checksums[2]:
            raise damaged(storage, key)
        table = pa.ipc.open_file(pa.BufferReader(about)).read_all()
        return cls(
            storage=storage,
            key=key,
            cells=table.drop_columns([_RANK, _LENGTH]),
            rank=table[_RANK].to_numpy(),
            lengths=table[_LENGTH].to_numpy().astype(np.int64),
            index_dtype=np.dtype(f"u{index_size}"),
            count_dtype=np.dtype(f"u{count_size}"),
            largest=largest,
            checksums=(checksums[0], checksums[1]),
        )

    def entries(self, first: int, last: int) -> tuple[bytes, bytes]:
        """Return the bytes of the features and of the counts of entries ``[first, last)``."""
        wide, size = self.index_dtype.itemsize, self.count_dtype.itemsize
        data = int(self.lengths.sum()) * wide
        starts, ends = [first * wide, data + first * size], [last * wide, data + last * size]
        indices, counts = _ranges(self.storage, self.key, starts, ends)
        return indices, counts


def _ranges(storage: Storage, key: str, starts: list[int], ends: list[int]) -> list[bytes]:
    try:
        return storage.get_ranges(key, starts, ends, gap=0)
    except SourceError as error:
        raise damaged(storage, key) from error


def damaged(storage: Storage, key: str) -> IntegrityError:
    """Return the error of a block that is not as it was written."""
    return IntegrityError(
        "A staged file is not as it was written.",
        where=storage.join(key),
        fix="Run again: what is missing will be read once more.",
    )


def prefix(plan: SourcePlan) -> str:
    """Return the folder of what is staged for a source."""
    # Another division into chunks is another plan: blocks of the two must not meet in one shard.
    return f"staging/{plan.digest[:32]}-{plan.division}"


def _receipt(plan: SourcePlan, chunk: int) -> str:
    return f"{prefix(plan)}/receipts/{chunk:06d}.json"


def _listed(value: Any) -> Any:
    return value.tolist()


def _encode(block: Block) -> Iterator[Any]:
    rows = block.rows
    checksums, largest = [0, 0], [0, 0]
    for which, stream in enumerate((rows.indices(_ENTRIES_AT_ONCE), rows.data(_ENTRIES_AT_ONCE))):
        for values in stream:
            content = values.tobytes()
            checksums[which] = google_crc32c.extend(checksums[which], content)
            largest[which] = max(largest[which], int(values.max(initial=0)))
            yield content
    cells = block.cells.append_column(_RANK, pa.array(block.rank))
    cells = cells.append_column(_LENGTH, pa.array(rows.lengths.astype(np.uint32))).combine_chunks()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, cells.schema) as writer:
        writer.write_table(cells)
    about = bytes(memoryview(sink.getvalue()))
    yield about
    sizes = int(rows.lengths.sum()), rows.index_dtype.itemsize, rows.count_dtype.itemsize, len(about)
    yield _FOOTER.pack(*sizes, largest[1], *checksums, google_crc32c.value(about))
