"""How a shard lies on disk: arrays, chunks, codecs, dtypes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

CHUNK = 1 << 17
"""Entries in a chunk: the smallest piece that is decoded. 2**17 reads runs of 512 to 4,096 cells fastest."""
CHUNKS_PER_SHARD = 64
"""Chunks in one file at most: 2**23 entries."""
MAX_NARROW_FEATURES = (1 << 16) - 1
"""Columns that 16 bits can number, with one number left over for none."""


BLOSC = (b"lz4", 5, 1)
"""Compressor, level and shuffle (of bytes) of each chunk, as numcodecs has them; `codecs` says the same to zarr.

Shuffling bits makes chunks up to a tenth smaller, and decoding takes up to one and a half times as long.
"""


def index_dtype(n_features: int) -> np.dtype[Any]:
    """Return the dtype of column indices."""
    return np.dtype(np.uint16 if n_features <= MAX_NARROW_FEATURES else np.uint32)


def count_dtype(largest: int) -> np.dtype[Any]:
    """Return the smallest unsigned dtype that holds `largest` exactly."""
    return np.min_scalar_type(max(int(largest), 0))


def entries_per_file(n: int) -> int:
    """Return the length of the zarr shards of an array of `n` entries: whole chunks, no more than needed."""
    return CHUNK * max(1, min(CHUNKS_PER_SHARD, -(-n // CHUNK)))


def codecs(dtype: npt.DTypeLike) -> list[Any]:
    """Return the codecs after serialisation: blosc lz4 with byte shuffle, then a checksum of each chunk."""
    from zarr.codecs import BloscCodec, Crc32cCodec

    return [
        BloscCodec(cname="lz4", clevel=BLOSC[1], shuffle="shuffle", typesize=np.dtype(dtype).itemsize),
        Crc32cCodec(),
    ]
