"""How an array of anybody's zarr store is cut into chunks, and how a chunk becomes entries in memory that is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
from numcodecs import Blosc, GZip, Zstd

from cellmill.atlas.chunks import RESIDUE

_COMPRESSORS = {"BloscCodec": Blosc, "GzipCodec": GZip, "ZstdCodec": Zstd}
_NAMES = ("BytesCodec", "Crc32cCodec")
"""What the index of a file with many chunks is encoded with, where it is known here."""


@dataclass(frozen=True)
class ChunkFormat:
    """How an array is stored.

    Attributes
    ----------
    chunk
        Entries of a chunk, also of the last.
    per_file
        Chunks of a file that has an index of them at its end; 0 where each chunk is a file.
    dtype
        Of what is decoded, with its byte order.
    checked
        Whether each chunk is followed by its crc32c.
    compressor
        What decompresses a chunk, if anything does.
    """

    chunk: int
    per_file: int
    dtype: np.dtype[Any]
    checked: bool
    compressor: Any

    def decode(self, content: bytes, out: npt.NDArray[Any]) -> None:
        """Decode a chunk.

        Raises
        ------
        ValueError, RuntimeError, OSError
            It is damaged. Not all damage is noticed.
        """
        body = memoryview(content)
        if self.checked:
            if len(content) < 4 or google_crc32c.value(content) != RESIDUE:
                raise ValueError("a chunk does not have the checksum it was written with")
            body = body[:-4]
        if not body:
            raise ValueError("a chunk is empty")
        if self.compressor is None:
            out[:] = np.frombuffer(body, out.dtype)
            return
        # Bytes 12 to 16 of a blosc buffer say how long it is: the decoder reads as far, be there as much or not.
        if isinstance(self.compressor, Blosc) and int.from_bytes(body[12:16], "little") != len(body):
            raise ValueError("a chunk ends before it should")
        self.compressor.decode(body, out)

    def index(self, tail: bytes) -> npt.NDArray[np.uint64]:
        """Return offset and size of each chunk from the end of a file, uint64 [per_file, 2]; all ones for none.

        Raises
        ------
        ValueError
            It is damaged.
        """
        if len(tail) != self.index_size or google_crc32c.value(tail) != RESIDUE:
            raise ValueError("the index of a file does not have the checksum it was written with")
        return np.frombuffer(tail[:-4], "<u8").reshape(-1, 2)

    @property
    def index_size(self) -> int:
        """Bytes of the index of a file."""
        return 16 * self.per_file + 4


def chunk_format(array: Any) -> ChunkFormat | None:
    """Return how a zarr array of one dimension is stored; None where that is not known here."""
    about = array.metadata
    if about.zarr_format == 2:
        if about.filters:
            return None
        return ChunkFormat(int(array.chunks[0]), 0, array.dtype, False, about.compressor)
    codecs, per_file = about.codecs, 0
    if len(codecs) == 1 and type(codecs[0]).__name__ == "ShardingCodec":
        sharding = codecs[0]
        if str(sharding.index_location.value) != "end" or _names(sharding.index_codecs) != _NAMES:
            return None
        codecs, per_file = sharding.codecs, int(array.shards[0]) // int(array.chunks[0])
    first, *rest = codecs
    names = _names(rest)
    checked = names[-1:] == ("Crc32cCodec",)
    compressors = [_COMPRESSORS.get(name) for name in (names[:-1] if checked else names)]
    if type(first).__name__ != "BytesCodec" or len(compressors) > 1 or None in compressors:
        return None
    order = ">" if first.endian is not None and first.endian.value == "big" else "<"
    compressor = compressors[0]() if compressors and compressors[0] is not None else None
    return ChunkFormat(int(array.chunks[0]), per_file, array.dtype.newbyteorder(order), checked, compressor)


def _names(codecs: Sequence[Any]) -> tuple[str, ...]:
    return tuple(type(codec).__name__ for codec in codecs)
