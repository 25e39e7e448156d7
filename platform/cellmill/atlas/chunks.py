"""Reading entries of a shard's arrays straight from its files: every chunk's checksum is verified, each decoded once.

The arrays are zarr v3, ``sharding_indexed`` with the index at the end, each chunk blosc-compressed and followed by its
crc32c. The fast zarr pipeline does not verify the checksums of chunks inside a shard, and decodes several times slower.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
import numpy.typing as npt

from cellmill.atlas.damaged_entries import DamagedEntriesError
from cellmill.atlas.decoding import decode, place_chunks
from cellmill.errors import IntegrityError, SourceError
from cellmill.memory import Memory
from cellmill.storage import Storage

I64 = npt.NDArray[np.int64]
Emit = Callable[[npt.NDArray[Any], slice], None]
Bytes = npt.NDArray[np.uint8]
Fetch = Callable[[list[tuple[int, int]]], Iterator[tuple[Bytes, int]]]
"""Reads byte ranges: gives bytes, and how many of the ranges they hold, one after the other."""

_FIX = "`cellmill atlas verify` lists what is damaged; restore it from a copy, or ingest again."
_ABSENT = (1 << 64) - 1
_CODECS = ("bytes", "blosc", "crc32c")
_MOST_RANGES = 32
"""Ranges that are asked of a remote store at once, so that a long read takes little memory."""
_MOST_BYTES = 1 << 19
"""Bytes that are read of a local file at once: few enough to be in the processor's cache when they are decoded."""
_MEMORY = Memory()
"""Of chunks and what one is decoded into, in each thread that reads."""
RESIDUE = 0x48674BC7
"""crc32c of any bytes that are followed by their own crc32c, little-endian."""


class Rows(NamedTuple):
    """Rows that are read of an array, and where they go.

    Attributes
    ----------
    begin, end : int64 [rows]
        Entries of each, ascending and apart.
    to : int64 [rows]
        Address of each one's first entry, or `cellmill.atlas.decoding.NOWHERE`.
    like
        An array of the type in which they are to be written.
    """

    begin: I64
    end: I64
    to: I64
    like: npt.NDArray[Any]


class ChunkedArray:
    """A one-dimensional array of a shard.

    Parameters
    ----------
    storage, path
        Where the zarr array is.

    Attributes
    ----------
    length, dtype
        Of the array.

    Raises
    ------
    IntegrityError
        The array's metadata is missing, damaged, or not of this kind.
    """

    def __init__(self, storage: Storage, path: str) -> None:
        self._storage = storage
        self._path = path
        self._index: dict[int, I64] = {}
        self._lock = threading.Lock()
        self._folder = str(storage.local_path(f"{path}/c")) if storage.is_local else None
        try:
            about = json.loads(storage.get(f"{path}/zarr.json"))
            (self.length,) = about["shape"]
            (file_entries,) = about["chunk_grid"]["configuration"]["chunk_shape"]
            (sharding,) = about["codecs"]
            inner = sharding["configuration"]
            (self._chunk,) = inner["chunk_shape"]
            names = tuple(codec["name"] for codec in inner["codecs"])
            self.dtype = np.dtype(about["data_type"])
        except (SourceError, KeyError, TypeError, ValueError) as error:
            raise self._damaged(f"Its metadata cannot be read: {error}.") from error
        self._per_file = file_entries // self._chunk
        if names != _CODECS or inner.get("index_location", "end") != "end":
            raise self._damaged(f"It is stored with {', '.join(names)}; known is {', '.join(_CODECS)}.")

    def read(self, begin: I64, end: I64, emit: Emit) -> None:
        """Read entries ``begin[i]`` up to, not including, ``end[i]``, ascending and apart, one after the other.

        Parameters
        ----------
        begin, end : int64 [k]
            Which entries.
        emit
            Called with decoded entries, and their place among all that are read.

        Raises
        ------
        IntegrityError
            A file is missing, or bytes do not have the checksum they were written with.
        """
        wanted = [item for item in zip(begin.tolist(), end.tolist(), strict=True) if item[1] > item[0]]
        if not wanted:
            return
        decoded = self._decoded(wanted)
        number, entries = next(decoded)
        at = 0
        for low, high in wanted:
            while low < high:
                while (number + 1) * self._chunk <= low:
                    number, entries = next(decoded)
                first = number * self._chunk
                part = entries[low - first : high - first]
                emit(part, slice(at, at + part.size))
                at += part.size
                low += part.size

    def place(self, begin: I64, end: I64, rows: Rows, tokens: npt.NDArray[Any]) -> None:
        """Read entries as `read` does, and write those of rows to where they go.

        Parameters
        ----------
        begin, end : int64 [k]
            Entries ``begin[i]`` up to, not including, ``end[i]``, ascending and apart: those of all rows.
        rows
            The rows.
        tokens : [n_features]
            Token of each column, if entries are columns and these are to be written; else empty.
        """
        wanted = [item for item in zip(begin.tolist(), end.tolist(), strict=True) if item[1] > item[0]]
        scratch = _MEMORY.empty(self._chunk, self.dtype)
        for content, bounds, numbers, file in self._contents(wanted):
            bad = place_chunks(content, bounds, numbers, scratch, tokens, *rows)
            if bad >= 0:
                raise self._undecoded(int(numbers[bad]), file)

    def _decoded(self, wanted: list[tuple[int, int]]) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """Yield the chunks of pieces, decoded into one array that is used again for each."""
        entries = _MEMORY.empty(self._chunk, self.dtype)
        for content, bounds, numbers, file in self._contents(wanted):
            for number, (start, stop) in zip(numbers.tolist(), bounds.tolist(), strict=True):
                if not decode(content[start:stop], entries):
                    raise self._undecoded(number, file)
                yield number, entries

    def _contents(self, wanted: list[tuple[int, int]]) -> Iterator[tuple[Bytes, I64, I64, int]]:
        """Yield the chunks of pieces, some at a time: bytes, where each chunk is in these, numbers, and the file.

        The bytes have the checksum they were written with, and are valid until the next are asked for.
        """
        chunks = sorted({c for low, high in wanted for c in range(low // self._chunk, -(-high // self._chunk))})
        for file in sorted({chunk // self._per_file for chunk in chunks}):
            mine = np.array([chunk for chunk in chunks if chunk // self._per_file == file])
            with self._file(file) as fetch:
                bounds = self._index_of(file, fetch)[mine % self._per_file]
                if (absent := np.flatnonzero(bounds[:, 0] < 0)).size:
                    raise self._damaged("A chunk is missing.", file, int(mine[absent[0]]))
                first = 0
                for content, n in fetch(bounds.tolist()):
                    numbers, within = mine[first : first + n], bounds[first : first + n] - bounds[first, 0]
                    for number, (start, stop) in zip(numbers.tolist(), within.tolist(), strict=True):
                        part = content[start:stop]
                        if part.size != stop - start or google_crc32c.value(part) != RESIDUE:
                            what = f"Chunk {number} does not have the checksum it was written with."
                            raise self._damaged(what, file, number)
                    # The checksum is no part of what blosc wrote.
                    within[:, 1] -= 4
                    yield content, within, numbers, file
                    first += n

    def _index_of(self, file: int, fetch: Fetch) -> I64:
        """Return where each chunk of a file begins and ends, -1 for one that is not there: int64 [chunks, 2]."""
        with self._lock:
            if file in self._index:
                return self._index[file]
        size = 16 * self._per_file + 4
        ((content, _),) = fetch([(-size, 0)])
        if content.size != size or google_crc32c.value(content) != RESIDUE:
            raise self._damaged("The index of a file does not have the checksum it was written with.", file)
        places = content[:-4].view("<u8").reshape(-1, 2).astype(np.uint64)
        index = np.stack([places[:, 0], places.sum(axis=1)], axis=1).astype(np.int64)
        index[places[:, 0] == _ABSENT] = -1
        with self._lock:
            self._index[file] = index
        return index

    @contextmanager
    def _file(self, file: int) -> Iterator[Fetch]:
        """Open a file for reads of byte ranges, each valid until the next; a negative start counts from the end."""
        if self._folder is None:
            key = f"{self._path}/c/{file}"
            yield lambda ranges: self._remote(key, ranges, file)
            return
        try:
            handle = os.open(f"{self._folder}/{file}", os.O_RDONLY)
        except OSError as error:
            raise self._damaged(f"A file cannot be read: {error.strerror}.", file) from error
        try:
            yield lambda ranges: self._local(handle, ranges, file)
        finally:
            os.close(handle)

    def _local(self, handle: int, ranges: list[tuple[int, int]], file: int) -> Iterator[tuple[Bytes, int]]:
        length = os.fstat(handle).st_size
        together = [(first, last, ranges[first][0], ranges[last - 1][1]) for first, last in _neighbours(ranges)]
        memory = _MEMORY.empty(max(stop - start for _, _, start, stop in together), np.uint8)
        for first, last, start, stop in together:
            try:
                n = os.preadv(handle, [memory[: stop - start].data], max(start + (length if start < 0 else 0), 0))
            except OSError as error:
                # Other parts of the file may be readable.
                raise IntegrityError(
                    f"The shard cannot be read. A part of a file cannot be read: {error.strerror}.",
                    where=self._storage.join(f"{self._path}/c/{file}"),
                    fix=_FIX,
                ) from error
            yield memory[:n], last - first

    def _remote(self, key: str, ranges: list[tuple[int, int]], file: int) -> Iterator[tuple[Bytes, int]]:
        try:
            if ranges[0][0] < 0:
                yield np.frombuffer(self._storage.get_tail(key, -ranges[0][0]), np.uint8), 1
                return
            for first in range(0, len(ranges), _MOST_RANGES):
                starts, ends = zip(*ranges[first : first + _MOST_RANGES], strict=True)
                for content in self._storage.get_ranges(key, starts, ends):
                    yield np.frombuffer(content, np.uint8), 1
        except SourceError as error:
            raise self._damaged(f"A file cannot be read: {error.what}", file) from error

    def _undecoded(self, number: int, file: int) -> IntegrityError:
        return self._damaged(f"Chunk {number} does not hold {self._chunk} entries.", file, number)

    def _damaged(self, what: str, file: int | None = None, chunk: int | None = None) -> IntegrityError:
        """Return the error that tells what is damaged: a chunk, a whole file, or the array."""
        key = self._path if file is None else f"{self._path}/c/{file}"
        what, where = f"The shard cannot be read. {what}", self._storage.join(key)
        if file is None:
            return IntegrityError(what, where=where, fix=_FIX)
        size = self._chunk * (self._per_file if chunk is None else 1)
        first = size * (file if chunk is None else chunk)
        return DamagedEntriesError(what, where=where, fix=_FIX, ranges=[(first, first + size)])


def _neighbours(ranges: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield which ranges follow one another without a gap, at most `_MOST_BYTES` together, or one."""
    first = 0
    for last in range(1, len(ranges) + 1):
        if (
            last == len(ranges)
            or ranges[last][0] != ranges[last - 1][1]
            or ranges[last][1] - ranges[first][0] > _MOST_BYTES
        ):
            yield first, last
            first = last
