"""Writing entries of a shard's arrays as they come: chunks are encoded one by one, and a file is written when full.

The files are what zarr v3 writes for ``sharding_indexed`` with the codecs of `cellmill.atlas.layout`; memory is that of
one compressed file, however long the array.
"""

from __future__ import annotations

from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from cellmill.atlas.decoding import blosc
from cellmill.atlas.layout import BLOSC, CHUNK, entries_per_file
from cellmill.digest import digest_of
from cellmill.storage import Storage

Digests = dict[str, tuple[str, int]]
"""The digest and the size of files, by key."""

_ABSENT = (1 << 64) - 1


class ChunkWriter:
    """The files of a one-dimensional array; its ``zarr.json`` is written by others.

    Parameters
    ----------
    storage, path
        Where the zarr array is.
    length, dtype
        Of the array.
    fill
        What the last chunk is filled up with.
    """

    def __init__(self, storage: Storage, path: str, length: int, dtype: npt.DTypeLike, fill: int) -> None:
        self._storage, self._path = storage, path
        self._left = length
        self._chunk = np.empty(CHUNK, np.dtype(dtype).newbyteorder("<"))
        self._fill = fill
        self._filled = 0
        self._chunks: list[bytes] = []
        self._per_file = entries_per_file(length) // CHUNK
        self._files = 0
        self.digests: Digests = {}

    def append(self, values: npt.NDArray[Any]) -> None:
        """Add entries; they are cast to the array's dtype."""
        self._left -= values.size
        if self._left < 0:
            raise ValueError("more entries than the array is long")
        values = np.ascontiguousarray(values, self._chunk.dtype)
        at = 0
        while at < values.size:
            if not self._filled and values.size - at >= CHUNK:
                self._encode(values[at : at + CHUNK])
                at += CHUNK
                continue
            n = min(values.size - at, CHUNK - self._filled)
            self._chunk[self._filled : self._filled + n] = values[at : at + n]
            self._filled += n
            at += n
            if self._filled == CHUNK:
                self._encode(self._chunk)

    def close(self) -> None:
        """Write what is left."""
        if self._left:
            raise ValueError(f"{self._left} entries of the array are missing")
        if self._filled:
            self._chunk[self._filled :] = self._fill
            self._encode(self._chunk)
        if self._chunks:
            self._write()

    def _encode(self, chunk: npt.NDArray[Any]) -> None:
        content = blosc.compress(chunk, *BLOSC)
        self._chunks.append(content + google_crc32c.value(content).to_bytes(4, "little"))
        self._filled = 0
        if len(self._chunks) == self._per_file:
            self._write()

    def _write(self) -> None:
        index = np.full((self._per_file, 2), _ABSENT, "<u8")
        sizes = np.array([len(chunk) for chunk in self._chunks], np.uint64)
        index[: sizes.size, 0] = np.cumsum(sizes) - sizes
        index[: sizes.size, 1] = sizes
        table = index.tobytes()
        content = b"".join([*self._chunks, table, google_crc32c.value(table).to_bytes(4, "little")])
        self._chunks.clear()
        key = f"{self._path}/c/{self._files}"
        self._storage.put(key, content)
        self.digests[key] = digest_of(content), len(content)
        self._files += 1
