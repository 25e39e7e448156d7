"""Refusing arrays of HDF5 files that are larger than their file can hold, before they are read."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from typing import Any

import h5py
import numpy as np

from cellmill.errors import SourceError

LARGEST_BLOCK = 1 << 30
SUSPICIOUS_BYTES = 1 << 28
SUSPICIOUS_RATIO = 500

_DEFLATE, _LZF = 1, 32000
_MOST_GROWTH = {_DEFLATE: 1032, _LZF: 88}
_PIECE = 1 << 20
_FIX = "The file is damaged or not what it claims: fetch it again, or write it again with anndata."


def refuse_bombs(part: h5py.Dataset, where: str) -> None:
    """Refuse an array that claims or would grow to far more than its bytes can hold, or lies in another file.

    Raises
    ------
    SourceError
        As said.
    """
    if part.is_virtual or part.external:
        raise SourceError(
            f"{part.name} lies in another file.", where=where, fix="Write the file again as a whole with anndata."
        )
    size, stored = part.size * part.dtype.itemsize, part.id.get_storage_size()
    refuse_claim(part.name, size, stored, where)
    block = int(np.prod(part.chunks)) * part.dtype.itemsize if part.chunks else 0
    if block > LARGEST_BLOCK:
        raise SourceError(
            f"{part.name} is compressed in blocks of {block / 1e9:,.1f} GB, which must be decoded whole.",
            where=where,
            fix="Write the file again with smaller chunks: adata.write_h5ad(path, compression='gzip').",
        )
    if part.chunks:
        filters = _filters(part, where)
        _refuse_growth(part, block, filters, where)


def refuse_gaps(part: h5py.Dataset, where: str) -> None:
    """Refuse an array of which parts were never written: they would read as zeros.

    Raises
    ------
    SourceError
        As said.
    """
    if not part.size or part.id.get_create_plist().get_layout() == h5py.h5d.COMPACT:
        return
    if part.chunks:
        wanted = int(np.prod([-(-n // c) for n, c in zip(part.shape, part.chunks, strict=True)]))
        written = part.id.get_num_chunks()
    else:
        wanted, written = 1, int(part.id.get_storage_size() > 0)
    if written < wanted:
        raise SourceError(
            f"{part.name} has {wanted - written:,} of {wanted:,} parts that were never written.",
            where=where,
            fix="The program that wrote the file was stopped: write it again.",
        )


def refuse_claim(name: str, size: int, stored: int, where: str) -> None:
    """Refuse an array of `size` bytes of which only `stored` are there.

    Raises
    ------
    SourceError
        No compression explains the difference.
    """
    if size > SUSPICIOUS_BYTES and size > stored * SUSPICIOUS_RATIO:
        raise SourceError(
            f"{name} claims {size / 1e9:,.1f} GB, but {stored / 1e6:,.1f} MB are stored.", where=where, fix=_FIX
        )


def _filters(part: h5py.Dataset, where: str) -> list[int]:
    """Return the numbers of an array's filters, all of which are at hand; HDF5 itself does not say what it misses."""
    about = part.id.get_create_plist()
    found = [about.get_filter(i) for i in range(about.get_nfilters())]
    if not all(h5py.h5z.filter_avail(number) for number, *_ in found):
        with suppress(ImportError):
            import_module("hdf5plugin")
    for number, _, _, name in found:
        if not h5py.h5z.filter_avail(number):
            raise SourceError(
                f"{part.name} is compressed with the HDF5 filter {number} ({name.decode()}), which is not installed.",
                where=where,
                fix="Install hdf5plugin, or write the file again with compression='gzip'.",
            )
    return [number for number, *_ in found]


def _refuse_growth(part: h5py.Dataset, block: int, filters: list[int], where: str) -> None:
    """HDF5 decompresses a chunk to its end, however far that is beyond the size it should have."""
    growth = next((_MOST_GROWTH[one] for one in filters if one in _MOST_GROWTH), None)
    if growth is None:
        return
    large: list[Any] = []

    def note(chunk: Any) -> None:
        # What is small cannot grow to much, and chunks of usual files are small.
        if chunk.size * growth > SUSPICIOUS_BYTES:
            large.append(chunk)

    part.id.chunk_iter(note)
    for chunk in large:
        if chunk.size > block + block // 1000 + 64 or _grown(part, chunk, block, filters) > block:
            raise SourceError(
                f"A chunk of {part.name} grows to more than its {block / 1e6:,.1f} MB.", where=where, fix=_FIX
            )


def _grown(part: h5py.Dataset, chunk: Any, block: int, filters: list[int]) -> int:
    """Return to how many bytes a chunk grows, or some number above the size of a block."""
    if chunk.filter_mask:
        return int(chunk.size)
    if _LZF in filters:
        # No decoder of it can be stopped; none of its chunks is so large unless it was made so.
        return block + 1
    decoder, grown = zlib.decompressobj(), 0
    try:
        for rest in _stored(part, chunk):
            while rest and not decoder.eof and grown <= block:
                grown += len(decoder.decompress(rest, _PIECE))
                rest = decoder.unconsumed_tail
    except zlib.error:
        # Reading will say so.
        return 0
    return grown


def _stored(part: h5py.Dataset, chunk: Any) -> Iterator[bytes]:
    """Yield the bytes of a chunk, in pieces where the file is an ordinary one."""
    if part.file.driver != "sec2" or part.file.userblock_size:
        yield part.id.read_direct_chunk(chunk.chunk_offset)[1]
        return
    handle = part.file.id.get_vfd_handle()
    for start in range(0, chunk.size, _PIECE):
        yield os.pread(handle, min(_PIECE, chunk.size - start), chunk.byte_offset + start)
