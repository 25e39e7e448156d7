"""Runs of content hashes: sorted, written once a commit, and asked which hashes they hold.

A run is n records of 16 bytes (the hash, big-endian, ascending), then the first 8 bytes of every 4,096th record (the
fences), then n, the sha256 of all that, and a mark. The fences tell which blocks may hold a hash, so that asking for a
few hashes reads a few blocks.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Any

import numpy as np
import numpy.typing as npt
import obstore
from obstore.exceptions import BaseError

from cellmill.errors import IntegrityError
from cellmill.storage import Storage

U64 = npt.NDArray[np.uint64]
BLOCK = 4096
_MARK = b"CMHASH01"
_TAIL = 8 + 32 + len(_MARK)
_RECORD = 16


def write_run(storage: Storage, hashes: U64) -> str:
    """Write hashes as a run and return its digest; the same hashes in any order are the same run.

    Parameters
    ----------
    storage
        The atlas's storage.
    hashes : uint64[n, 2]
        High and low halves.
    """
    ordered = sort_hashes(hashes)
    body = ordered.astype(">u8").tobytes() + np.ascontiguousarray(ordered[::BLOCK, 0]).astype(">u8").tobytes()
    count = struct.pack(">Q", len(ordered))
    digest = hashlib.sha256(body + count)
    name = digest.hexdigest()[:32]
    storage.put_if_absent(f"hashes/{name}", b"".join((body, count, digest.digest(), _MARK)))
    return name


def sort_hashes(hashes: U64) -> U64:
    """Return hashes in ascending order."""
    ordered: U64 = hashes[np.lexsort((hashes[:, 1], hashes[:, 0]))]
    return ordered


class HashRun:
    """A run, opened; only its fences are in memory.

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
        tail = self._range(max(0, size - _TAIL), size)
        if len(tail) < _TAIL or not tail.endswith(_MARK):
            raise self._damaged("it is no run of hashes")
        self.n: int = struct.unpack(">Q", tail[:8])[0]
        n_fences = -(-self.n // BLOCK)
        if size != self.n * _RECORD + n_fences * 8 + _TAIL:
            raise self._damaged("its length is wrong")
        start = self.n * _RECORD
        self._fences = np.frombuffer(self._range(start, start + n_fences * 8), dtype=">u8").astype(np.uint64)

    def contains(self, hashes: U64) -> npt.NDArray[np.bool_]:
        """Return which hashes are in the run.

        Parameters
        ----------
        hashes : uint64[m, 2]
            In ascending order.

        Returns
        -------
        bool[m]
        """
        found = np.zeros(len(hashes), dtype=bool)
        if not self.n or not len(hashes):
            return found
        # A value equal to a fence may also stand at the end of the block before it.
        first = np.maximum(np.searchsorted(self._fences, hashes[:, 0], side="left") - 1, 0)
        last = np.maximum(np.searchsorted(self._fences, hashes[:, 0], side="right") - 1, 0)
        start = 0
        while start < len(hashes):
            low, high = int(first[start]), int(last[start])
            stop = start + 1
            while stop < len(hashes) and first[stop] <= high + 1 and int(last[stop]) - low < _BLOCKS_AT_ONCE:
                high = max(high, int(last[stop]))
                stop += 1
            block = self._records(low, high + 1)
            found[start:stop] = _isin(hashes[start:stop], block)
            start = stop
        return found

    def verify(self) -> None:
        """Read all of the run.

        Raises
        ------
        IntegrityError
            Its bytes do not have the checksum they were written with.
        """
        data = self._storage.get(self._path)
        digest = hashlib.sha256(data[: -_TAIL + 8])
        stated = data[-_TAIL + 8 : -len(_MARK)]
        if digest.digest() != stated or digest.hexdigest()[:32] != self._path.rpartition("/")[2]:
            raise self._damaged("its bytes do not have the checksum they were written with")

    def _records(self, first_block: int, end_block: int) -> U64:
        stop = min(end_block * BLOCK, self.n)
        data = self._range(first_block * BLOCK * _RECORD, stop * _RECORD)
        return np.frombuffer(data, dtype=">u8").astype(np.uint64).reshape(-1, 2)

    def _size(self) -> int:
        try:
            return int(obstore.head(self._storage.store, self._path)["size"])
        except (FileNotFoundError, BaseError, OSError) as error:
            raise self._damaged("it is missing") from error

    def _range(self, start: int, end: int) -> bytes:
        if end <= start:
            return b""
        try:
            data: Any = obstore.get_range(self._storage.store, self._path, start=start, end=end)
        except (FileNotFoundError, BaseError, OSError) as error:
            raise self._damaged(str(error).splitlines()[0]) from error
        self.bytes_read += end - start
        return bytes(data)

    def _damaged(self, what: str) -> IntegrityError:
        return IntegrityError(
            f"A run of content hashes cannot be read: {what}.",
            where=self._storage.join(self._path),
            fix="Restore the file from a copy of the atlas.",
        )


_BLOCKS_AT_ONCE = 256


def _isin(wanted: U64, known: U64) -> npt.NDArray[np.bool_]:
    """Return which hashes are among the known ones; both ascending."""
    place = np.searchsorted(known[:, 0], wanted[:, 0], side="left")
    found = np.zeros(len(wanted), dtype=bool)
    open_ = np.flatnonzero(place < len(known))
    while open_.size:
        here = place[open_]
        same_high = known[here, 0] == wanted[open_, 0]
        found[open_] = same_high & (known[here, 1] == wanted[open_, 1])
        # Equal high halves of different hashes: look at the next record.
        open_ = open_[same_high & ~found[open_]]
        place[open_] += 1
        open_ = open_[place[open_] < len(known)]
    return found
