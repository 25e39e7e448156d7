"""Blocks on their way from the chunk that made them to the shard they belong to.

What a chunk staged is complete when its receipt is there; a later run of the same plan starts from the receipts.
A block is one file: packed cells, metadata as Arrow, and what is needed to find and to check them. Of many blocks,
only the metadata is ever in memory at once.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from isal.isal_zlib import crc32

from cellmill.errors import IntegrityError, SourceError
from cellmill.ingestion.backend import Row
from cellmill.ingestion.chunk import Block
from cellmill.ingestion.plan import SourcePlan
from cellmill.storage import Storage

I64 = npt.NDArray[np.int64]
_FOOTER = struct.Struct("<5Q")
_BYTES_AT_ONCE = 1 << 20
_RANK, _LENGTH, _SIZE = "__rank", "__length", "__size"


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
    lengths, sizes : int64 [n]
        Entries and packed bytes of each cell.
    largest
        The largest count.
    checksum
        The crc32 of all packed cells.
    """

    storage: Storage
    key: str
    cells: pa.Table
    rank: npt.NDArray[np.uint64]
    lengths: I64
    sizes: I64
    largest: int
    checksum: int

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
        start, size, largest, checksum, own = _FOOTER.unpack(foot)
        about = np.empty(size, np.uint8)
        _read(storage, key, start, about)
        if crc32(about) != own:
            raise damaged(storage, key)
        table = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(about))).read_all()
        return cls(
            storage=storage,
            key=key,
            cells=table.drop_columns([_RANK, _LENGTH, _SIZE]),
            rank=table[_RANK].to_numpy(),
            lengths=table[_LENGTH].to_numpy().astype(np.int64),
            sizes=table[_SIZE].to_numpy().astype(np.int64),
            largest=largest,
            checksum=checksum,
        )

    def load(self, first: int, last: int, out: npt.NDArray[np.uint8], before: int) -> int:
        """Copy the packed bytes of cells ``[first, last)``, and return the checksum of all up to there.

        Parameters
        ----------
        first, last
            Which cells; all before `first` were loaded.
        out
            As long as they are.
        before
            What the call for the cells before returned, 0 at first.

        Raises
        ------
        IntegrityError
            They are not there.
        """
        _read(self.storage, self.key, int(self.sizes[:first].sum()), out)
        return crc32(out, before)

    def damaged(self) -> IntegrityError:
        """Return the error of a block that is not as it was written."""
        return damaged(self.storage, self.key)


def _read(storage: Storage, key: str, start: int, out: npt.NDArray[np.uint8]) -> None:
    try:
        storage.get_into(key, start, out)
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
    packed, checksum = block.packed, 0
    for content in packed.stream(_BYTES_AT_ONCE):
        checksum = crc32(content, checksum)
        yield content
    added = {_RANK: block.rank, _LENGTH: packed.lengths.astype(np.uint32), _SIZE: packed.sizes.astype(np.uint32)}
    cells = block.cells
    for name, values in added.items():
        cells = cells.append_column(name, pa.array(values))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, cells.schema) as writer:
        writer.write_table(cells.combine_chunks())
    about = sink.getvalue()
    yield about
    yield _FOOTER.pack(int(packed.sizes.sum()), about.size, block.largest, checksum, crc32(about))
