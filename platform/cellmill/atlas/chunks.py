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
from importlib import import_module
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from cellmill.atlas.damaged_entries import DamagedEntriesError
from cellmill.errors import IntegrityError, SourceError
from cellmill.memory import Memory
from cellmill.storage import Storage

I64 = npt.NDArray[np.int64]
Emit = Callable[[npt.NDArray[Any], slice], None]
Bytes = npt.NDArray[np.uint8]
Fetch = Callable[[list[tuple[int, int]]], Iterator[Bytes]]

_FIX = "`cellmill atlas verify` lists what is damaged; restore it from a copy, or ingest again."
_ABSENT = (1 << 64) - 1
_CODECS = ("bytes", "blosc", "crc32c")
_MOST_RANGES = 32
"""Ranges that are asked of a remote store at once, so that a long read takes little memory."""
_MEMORY = Memory()
"""Of a chunk and what it is decoded into, in each thread that reads."""
RESIDUE = 0x48674BC7
"""crc32c of any bytes that are followed by their own crc32c, little-endian."""

blosc: Any = import_module("numcodecs.blosc")

# Blosc's own threads and the lock around them gain nothing: reads are spread over threads and tasks already.
blosc.use_threads = False


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
        self._index: dict[int, npt.NDArray[np.uint64]] = {}
        self._lock = threading.Lock()
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
        chunks = sorted({c for low, high in wanted for c in range(low // self._chunk, -(-high // self._chunk))})
        decoded = self._decoded(chunks)
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

    def _decoded(self, chunks: list[int]) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """Yield chunks, decoded into one array that is used again for each."""
        entries = _MEMORY.empty(self._chunk, self.dtype)
        for file in sorted({chunk // self._per_file for chunk in chunks}):
            mine = [chunk for chunk in chunks if chunk // self._per_file == file]
            with self._file(file) as fetch:
                places = self._index_of(file, fetch)[[chunk % self._per_file for chunk in mine]]
                if (absent := np.flatnonzero(places[:, 0] == _ABSENT)).size:
                    raise self._damaged("A chunk is missing.", file, mine[int(absent[0])])
                found = fetch([(offset, offset + size) for offset, size in places.tolist()])
                for chunk, content in zip(mine, found, strict=True):
                    self._decode(content, entries, chunk, file)
                    yield chunk, entries

    def _decode(self, content: Bytes, out: npt.NDArray[Any], chunk: int, file: int) -> None:
        if content.size < 20 or google_crc32c.value(content) != RESIDUE:
            raise self._damaged(f"Chunk {chunk} does not have the checksum it was written with.", file, chunk)
        # Bytes 4 to 8 of a blosc buffer say how long it is when decoded.
        if int.from_bytes(content[4:8].tobytes(), "little") != out.nbytes:
            raise self._damaged(f"Chunk {chunk} does not hold {out.size} entries.", file, chunk)
        blosc.decompress(content[:-4], out)

    def _index_of(self, file: int, fetch: Fetch) -> npt.NDArray[np.uint64]:
        """Return offset and size of each chunk of a file, uint64 [chunks, 2]."""
        with self._lock:
            if file in self._index:
                return self._index[file]
        size = 16 * self._per_file + 4
        (content,) = fetch([(-size, 0)])
        if content.size != size or google_crc32c.value(content) != RESIDUE:
            raise self._damaged("The index of a file does not have the checksum it was written with.", file)
        index = content[:-4].view("<u8").reshape(-1, 2).astype(np.uint64)
        with self._lock:
            self._index[file] = index
        return index

    @contextmanager
    def _file(self, file: int) -> Iterator[Fetch]:
        """Open a file for reads of byte ranges, each valid until the next; a negative start counts from the end."""
        key = f"{self._path}/c/{file}"
        if not self._storage.is_local:
            yield lambda ranges: self._remote(key, ranges, file)
            return
        try:
            handle = os.open(self._storage.local_path(key), os.O_RDONLY)
        except OSError as error:
            raise self._damaged(f"A file cannot be read: {error.strerror}.", file) from error
        try:
            yield lambda ranges: self._local(handle, ranges, file)
        finally:
            os.close(handle)

    def _local(self, handle: int, ranges: list[tuple[int, int]], file: int) -> Iterator[Bytes]:
        length = os.fstat(handle).st_size
        # What is read is small enough to be in the processor's cache when it is decoded.
        memory = _MEMORY.empty(max(stop - start for start, stop in ranges), np.uint8)
        for start, stop in ranges:
            part = memory[: stop - start]
            try:
                n = os.preadv(handle, [part.data], max(start + (length if start < 0 else 0), 0))
            except OSError as error:
                # Other parts of the file may be readable.
                raise IntegrityError(
                    f"The shard cannot be read. A part of a file cannot be read: {error.strerror}.",
                    where=self._storage.join(f"{self._path}/c/{file}"),
                    fix=_FIX,
                ) from error
            yield part[:n]

    def _remote(self, key: str, ranges: list[tuple[int, int]], file: int) -> Iterator[Bytes]:
        try:
            if ranges[0][0] < 0:
                yield np.frombuffer(self._storage.get_tail(key, -ranges[0][0]), np.uint8)
                return
            for first in range(0, len(ranges), _MOST_RANGES):
                starts, ends = zip(*ranges[first : first + _MOST_RANGES], strict=True)
                for content in self._storage.get_ranges(key, starts, ends):
                    yield np.frombuffer(content, np.uint8)
        except SourceError as error:
            raise self._damaged(f"A file cannot be read: {error.what}", file) from error

    def _damaged(self, what: str, file: int | None = None, chunk: int | None = None) -> IntegrityError:
        """Return the error that tells what is damaged: a chunk, a whole file, or the array."""
        key = self._path if file is None else f"{self._path}/c/{file}"
        what, where = f"The shard cannot be read. {what}", self._storage.join(key)
        if file is None:
            return IntegrityError(what, where=where, fix=_FIX)
        size = self._chunk * (self._per_file if chunk is None else 1)
        first = size * (file if chunk is None else chunk)
        return DamagedEntriesError(what, where=where, fix=_FIX, ranges=[(first, first + size)])
