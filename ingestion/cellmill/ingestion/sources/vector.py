"""One-dimensional arrays of an HDF5 file, read around the library where its chunks allow it.

HDF5 copies what it reads several times, and decodes with a slow zlib under one lock for all threads. The chunks of
nearly all files are plain or deflated, and where they are in the file is known.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
from isal import igzip_lib, isal_zlib

_DEFLATE, _SHUFFLE = 1, 2
_PLAIN: tuple[int, ...] = ()
_LARGE = 1 << 22
"""Bytes of a chunk above which it is decoded as it is read."""
_PIECE = 1 << 20
_KNOWN = (_PLAIN, (_DEFLATE,), (_SHUFFLE, _DEFLATE))


class Vector:
    """A one-dimensional array, opened for reads of ranges.

    Parameters
    ----------
    array
        A data set of an open HDF5 file, or anything that is sliced alike.
    """

    def __init__(self, array: Any) -> None:
        self._array = array
        self.dtype: np.dtype[Any] = array.dtype
        self._offsets, self._sizes, self._filters = _chunks(array)
        if self._offsets is not None:
            self._file = array.file.id
            self._length = int(array.chunks[0]) if array.chunks else int(array.shape[0])
            self._runs = _run_ends(self._offsets, self._length * self.dtype.itemsize)
        self._decoded: tuple[int, npt.NDArray[Any]] | None = None
        self._inflating: _Inflating | None = None

    @property
    def is_direct(self) -> bool:
        """Whether entries are read around the library, chunks of any size piece by piece."""
        return self._offsets is not None and self._filters in (_PLAIN, (_DEFLATE,))

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Return entries ``[start, stop)`` as they are stored.

        Raises
        ------
        OSError
            They cannot be read or decoded.
        """
        if self._offsets is None:
            values: npt.NDArray[Any] = self._array[start:stop]
            return values
        out = np.empty(stop - start, self.dtype)
        length, size = self._length, self.dtype.itemsize
        number = start // length
        while number * length < stop:
            first = max(start, number * length)
            if self._filters == _PLAIN:
                after = int(self._runs[number])
                last = min(stop, after * length)
                self._fill(out[first - start : last - start], int(self._offsets[number]) + first % length * size)
                number = after
            else:
                last = min(stop, (number + 1) * length)
                out[first - start : last - start] = self._part(number, first - number * length, last - first)
                number += 1
        return out

    def _part(self, number: int, first: int, n: int) -> npt.NDArray[Any]:
        """Return entries of a deflated chunk."""
        size = self.dtype.itemsize
        assert self._offsets is not None
        if self._filters == (_DEFLATE,) and self._length * size > _LARGE:
            if self._inflating is None or self._inflating.number != number or self._inflating.at > first * size:
                self._inflating = _Inflating(number, self._fill, int(self._offsets[number]), int(self._sizes[number]))
            return np.frombuffer(self._inflating.read(first * size, n * size), self.dtype)
        return self._chunk(number)[first : first + n]

    def _fill(self, piece: npt.NDArray[Any], offset: int) -> None:
        view = piece.view(np.uint8).data
        handle = self._file.get_vfd_handle()
        while view:
            n = os.preadv(handle, [view], offset)
            if not n:
                raise OSError("the file ends before the array does")
            view, offset = view[n:], offset + n

    def _chunk(self, number: int) -> npt.NDArray[Any]:
        """Return a chunk, decoded once for reads that come one after the other."""
        if self._decoded is None or self._decoded[0] != number:
            assert self._offsets is not None
            self._decoded = None
            stored = np.empty(int(self._sizes[number]), np.uint8)
            self._fill(stored, int(self._offsets[number]))
            size = self._length * self.dtype.itemsize
            try:
                content = isal_zlib.decompressobj().decompress(stored, size + 1)
            except igzip_lib.IsalError as error:  # type: ignore[misc]
                raise OSError(f"a chunk cannot be decoded ({error})") from error
            if len(content) != size:
                raise OSError("a chunk does not have the size that it should have")
            values = np.frombuffer(content, np.uint8)
            if _SHUFFLE in self._filters:
                values = values.reshape(self.dtype.itemsize, -1).T.copy()
            self._decoded = number, values.reshape(-1).view(self.dtype)
        return self._decoded[1]


class _Inflating:
    """A large deflated chunk that is decoded as it is read, so that it is never in memory as a whole.

    Parameters
    ----------
    number
        Of the chunk.
    fill
        Reads bytes of the file into an array.
    offset, size
        Where the chunk is in the file.
    """

    def __init__(self, number: int, fill: Callable[[npt.NDArray[np.uint8], int], None], offset: int, size: int) -> None:
        self.number = number
        self.at = 0
        self._fill, self._offset, self._left = fill, offset, size
        self._decoder = isal_zlib.decompressobj()
        self._stored = b""

    def read(self, start: int, n: int) -> bytes:
        """Return bytes ``[start, start + n)``; what lies before is decoded and left out."""
        while self.at < start:
            self._next(start - self.at)
        stop, parts = start + n, []
        while self.at < stop:
            parts.append(self._next(stop - self.at))
        return b"".join(parts)

    def _next(self, most: int) -> bytes:
        while True:
            if not self._stored and self._left:
                stored = np.empty(min(_PIECE, self._left), np.uint8)
                self._fill(stored, self._offset)
                self._offset, self._left = self._offset + stored.size, self._left - stored.size
                self._stored = stored.tobytes()
            try:
                content: bytes = self._decoder.decompress(self._stored, min(most, _PIECE))
            except igzip_lib.IsalError as error:  # type: ignore[misc]
                raise OSError(f"a chunk cannot be decoded ({error})") from error
            self._stored = self._decoder.unconsumed_tail
            if content:
                self.at += len(content)
                return content
            if self._decoder.eof or not (self._stored or self._left):
                raise OSError("a chunk does not have the size that it should have")


def _run_ends(offsets: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.int64]:
    """Return for each chunk the number after the last of those that follow each other in the file."""
    ends = np.append(np.flatnonzero(np.diff(offsets) != size) + 1, offsets.size)
    return ends[np.searchsorted(ends, np.arange(offsets.size), side="right")]


def _chunks(array: Any) -> tuple[npt.NDArray[np.int64] | None, npt.NDArray[np.int64], tuple[int, ...]]:
    """Return where the chunks are, their sizes and their filters; no places if the library has to read them."""
    unknown = None, np.empty(0, np.int64), _PLAIN
    if not isinstance(array, h5py.Dataset) or array.ndim != 1 or not array.size or array.file.userblock_size:
        return unknown
    about = array.id.get_create_plist()
    if array.file.driver != "sec2" or about.get_external_count():
        return unknown
    if about.get_layout() == h5py.h5d.CONTIGUOUS:
        offset = array.id.get_offset()
        return unknown if offset is None else (np.array([offset]), np.array([array.nbytes]), _PLAIN)
    filters = tuple(about.get_filter(i)[0] for i in range(about.get_nfilters()))
    if about.get_layout() != h5py.h5d.CHUNKED or filters not in _KNOWN:
        return unknown
    length = int(array.chunks[0])
    offsets = np.full(-(-array.size // length), -1, np.int64)
    sizes = np.zeros(offsets.size, np.int64)
    masks = []

    def note(chunk: Any) -> None:
        number = chunk.chunk_offset[0] // length
        if number < offsets.size:
            offsets[number], sizes[number] = chunk.byte_offset, chunk.size
        masks.append(chunk.filter_mask)

    array.id.chunk_iter(note)
    whole = length * array.dtype.itemsize
    # Deflate never grows bytes by more than a thousandth: what claims more is damaged.
    sound = (offsets >= 0).all() and not any(masks) and (sizes <= whole + whole // 1000 + 64).all()
    if filters == _PLAIN:
        sound = sound and (sizes == whole).all()
    return (offsets, sizes, filters) if sound else unknown
