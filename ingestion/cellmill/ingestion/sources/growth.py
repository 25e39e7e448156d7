"""What compressed bytes would become, found out without letting them."""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from collections.abc import Callable
from typing import Any

import pyarrow as pa

_PIECE = 1 << 20
_BLOSC_HEADER, _LZ4_HEADER = 16, 4
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


def grown_size(stored: bytes, compressor: str, limit: int) -> int:
    """Return how many bytes there are when they are decompressed, or some number above `limit`.

    Of bytes that cannot be decompressed there are none: whoever decompresses them says so.

    Parameters
    ----------
    stored
        Compressed bytes.
    compressor
        ``blosc``, ``lz4``, ``zstd``, ``zlib``, ``gzip``, ``bz2`` or ``lzma``, as numcodecs writes them; empty for none.
    limit
        Bytes.
    """
    if not compressor:
        return len(stored)
    if compressor == "blosc":
        return int(struct.unpack_from("<I", stored, 4)[0]) if len(stored) >= _BLOSC_HEADER else 0
    if compressor == "lz4":
        return int(struct.unpack_from("<I", stored)[0]) if len(stored) >= _LZ4_HEADER else 0
    if compressor == "zstd":
        said = _zstd_size(stored)
        return _streamed_zstd(stored, limit) if said is None else said
    return _streamed(stored, _DECODERS[compressor], limit)


def is_cut(stored: bytes, compressor: str) -> bool:
    """Return whether bytes are fewer than they say; blosc's own decoder would read on beyond their end."""
    if compressor != "blosc":
        return False
    return len(stored) < _BLOSC_HEADER or int(struct.unpack_from("<I", stored, 12)[0]) > len(stored)


def _zstd_size(stored: bytes) -> int | None:
    """Return the size in the header of a frame, None if it does not say; a decoder gives up beyond what it says."""
    if not stored.startswith(_ZSTD_MAGIC) or len(stored) < 14:
        return None
    flags = stored[4]
    single = bool(flags & 0x20)
    width = {0: int(single), 1: 2, 2: 4, 3: 8}[flags >> 6]
    start = 5 + (not single) + (0, 1, 2, 4)[flags & 3]
    if not width:
        return None
    size = int.from_bytes(stored[start : start + width], "little")
    return size + 256 if width == 2 else size


def _streamed_zstd(stored: bytes, limit: int) -> int:
    grown = 0
    try:
        with pa.CompressedInputStream(pa.BufferReader(stored), "zstd") as stream:
            while grown <= limit and (piece := stream.read(_PIECE)):
                grown += len(piece)
    except OSError:
        return 0
    return grown


def _streamed(stored: bytes, make: Callable[[], Any], limit: int) -> int:
    grown, decoder = 0, make()
    rest = stored
    try:
        while grown <= limit:
            piece = decoder.decompress(rest, _PIECE)
            grown += len(piece)
            if decoder.eof:
                rest, decoder = decoder.unused_data, make()
                if not rest:
                    break
            elif hasattr(decoder, "unconsumed_tail"):
                rest = decoder.unconsumed_tail
                if not rest and not piece:
                    break
            else:
                rest = b""
                if decoder.needs_input:
                    break
    except (zlib.error, OSError, lzma.LZMAError, EOFError):
        return 0
    return grown


_DECODERS: dict[str, Callable[[], Any]] = {
    "zlib": zlib.decompressobj,
    "gzip": lambda: zlib.decompressobj(wbits=31),
    "bz2": bz2.BZ2Decompressor,
    "lzma": lzma.LZMADecompressor,
}
