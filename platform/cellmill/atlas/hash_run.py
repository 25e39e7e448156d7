"""Runs of content hashes: sorted records of all cells of some shards, asked which cells they hold.

A run is n records of three little-endian 64-bit numbers, ascending: the two halves of the content hash, and a tag (32
bits of the barcode's hash, one bit that says whether the snapshot hides the cell, 31 bits with the place of its shard
among the run's members). Then come every 1,024th record (the fences), the members as JSON, the numbers of records and
of bytes of members, the sha256 of all that, and a mark. A run is named by its members, which decide what is in it.

Hashes are spread evenly, so the fences and a line between two of them tell almost exactly where a hash would be: asking
for a few reads a few kilobytes for each, however long the run is.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cellmill.atlas.entry import ShardEntry
from cellmill.errors import IntegrityError, SourceError
from cellmill.storage import Storage

U64 = npt.NDArray[np.uint64]
BLOCK = 1024
RECORD = 24
HIDDEN = 1 << 31
MARK = b"CMHASH02"
_TAIL = 16 + 32 + len(MARK)
_PIECE = 1 << 20


class Member(NamedTuple):
    """A shard whose cells are in a run.

    Attributes
    ----------
    dataset, digest
        The shard.
    overlay
        Digest of its overlay, which says what is hidden.
    """

    dataset: str
    digest: str
    overlay: str

    @classmethod
    def of(cls, entry: ShardEntry) -> Member:
        """Return a shard's."""
        return cls(entry.dataset, entry.digest, entry.overlay)


def run_name(members: Sequence[Member]) -> str:
    """Return the name of the run of some members, in ascending order."""
    return hashlib.sha256(encode_members(members)).hexdigest()[:32]


def encode_members(members: Sequence[Member]) -> bytes:
    """Return members as they stand in the file."""
    return json.dumps(members, separators=(",", ":")).encode()


def tail(n: int, n_members: int, digest: bytes) -> bytes:
    """Return the end of a run: `digest` is the sha256 of all before it."""
    return counts(n, n_members) + digest + MARK


def counts(n: int, n_members: int) -> bytes:
    """Return the numbers of records and of bytes of members as they stand in the file."""
    return struct.pack("<QQ", n, n_members)


class HashRun:
    """A run, opened; only its fences and members are in memory.

    Attributes
    ----------
    n
        Records.
    members
        Shards, ascending; records give their places.
    fences : uint64 [ceil(n / 1024), 3]
        First record of each block.
    bytes_read
        So far.

    Parameters
    ----------
    storage, path
        Where it is.

    Raises
    ------
    IntegrityError
        It is missing, or is no run.
    """

    def __init__(self, storage: Storage, path: str) -> None:
        self._storage, self._path = storage, path
        self.bytes_read = 0
        size = self._size()
        (end,) = self._ranges([max(0, size - _TAIL)], [size])
        if len(end) < _TAIL or end[-len(MARK) :] != MARK:
            raise self._damaged("it is no run of hashes")
        n, n_members = struct.unpack("<QQ", end[:16])
        self.n: int = n
        n_fences = -(-n // BLOCK)
        if size != (n + n_fences) * RECORD + n_members + _TAIL:
            raise self._damaged("its length is wrong")
        start = n * RECORD
        (middle,) = self._ranges([start], [start + n_fences * RECORD + n_members])
        self.fences: U64 = _records(middle[: n_fences * RECORD])
        encoded = bytes(middle[n_fences * RECORD :])
        if hashlib.sha256(encoded).hexdigest()[:32] != path.rpartition("/")[2]:
            raise self._damaged("its members are not those that it is named by")
        self.members: tuple[Member, ...] = tuple(Member(*item) for item in json.loads(encoded))

    def read(self, starts: Sequence[int], stops: Sequence[int]) -> U64:
        """Return the records ``[starts[i], stops[i])`` one after the other, uint64 [m, 3]."""
        parts = self._ranges([start * RECORD for start in starts], [stop * RECORD for stop in stops])
        return _records(parts[0] if len(parts) == 1 else b"".join(parts))

    @property
    def gap(self) -> int:
        """Records that are better read for nothing than left out by a second request."""
        return 128 if self._storage.is_local else 2048

    def verify(self) -> None:
        """Read all of the run.

        Raises
        ------
        IntegrityError
            Its bytes do not have the checksum they were written with.
        """
        state = hashlib.sha256()
        end = self._size() - len(MARK) - 32
        for start in range(0, end, _PIECE):
            state.update(self._ranges([start], [min(start + _PIECE, end)])[0])
        if state.digest() != self._ranges([end], [end + 32])[0]:
            raise self._damaged("its bytes do not have the checksum they were written with")

    def _size(self) -> int:
        try:
            return self._storage.size(self._path)
        except SourceError as error:
            raise self._damaged("it is missing") from error

    def _ranges(self, starts: list[int], ends: list[int]) -> list[Any]:
        if len(starts) == 1 and starts[0] == ends[0]:
            return [b""]
        try:
            found = self._storage.get_ranges(self._path, starts, ends, gap=0)
        except SourceError as error:
            raise self._damaged(error.what) from error
        self.bytes_read += sum(ends) - sum(starts)
        return [memoryview(part) for part in found]

    def _damaged(self, what: str) -> IntegrityError:
        return IntegrityError(
            f"A run of content hashes cannot be read: {what}.",
            where=self._storage.join(self._path),
            fix="Restore the file from a copy of the atlas.",
        )


def _records(data: Any) -> U64:
    return np.frombuffer(data, dtype="<u8").reshape(-1, 3)
