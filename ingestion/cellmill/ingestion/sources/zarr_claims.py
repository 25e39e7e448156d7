"""Refusing zarr arrays that are not there as a whole, or would grow to more than they should, before they are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import numpy as np

from cellmill.errors import SourceError
from cellmill.ingestion.sources.bombs import LARGEST_BLOCK, refuse_claim

COMPRESSORS = frozenset({"blosc", "zlib", "gzip", "zstd", "lz4", "bz2", "lzma"})
_HARMLESS = frozenset(
    {
        *("bytes", "transpose", "vlen-utf8", "vlen-bytes", "crc32c", "crc32", "adler32", "fletcher32"),
        *("delta", "shuffle", "fixedscaleoffset", "quantize", "bitround", "astype"),
    }
)
_WIDENING = frozenset({"delta", "fixedscaleoffset", "quantize", "bitround", "astype"})
_SHARDS = "sharding_indexed"
_TEXT_BYTES = 1024
_TEXT_MINIMUM = 1 << 26


@dataclass(frozen=True)
class Limit:
    """What the stored chunks of an array may grow to.

    Attributes
    ----------
    bytes
        Of one chunk when it is decoded.
    compressor
        What it was compressed with, empty for nothing.
    chunks_in_shard
        Chunks in one stored object, 0 where it is one chunk.
    index_first
        Whether the index of a shard is at its beginning.
    """

    bytes: int
    compressor: str
    chunks_in_shard: int = 0
    index_first: bool = False


def limit_of(array: Any, where: str) -> Limit:
    """Return what an array's chunks may grow to.

    Raises
    ------
    SourceError
        It is stored in a way that is not known to be harmless, or in chunks that are too large.
    """
    named, shards = _codecs(array)
    name = f"/{array.path}"
    for codec in named:
        if codec not in COMPRESSORS | _HARMLESS:
            refuse_codec(name, codec, where)
    compressors = [codec for codec in named if codec in COMPRESSORS]
    if len(compressors) > 1:
        raise SourceError(f"{name} is compressed twice ({' and '.join(compressors)}).", where=where, fix=_FIX)
    items = prod(array.chunks)
    fixed = array.dtype.kind in "biufcSU" or array.dtype.names is not None
    size = items * array.dtype.itemsize if fixed else max(_TEXT_MINIMUM, items * _TEXT_BYTES)
    if size > LARGEST_BLOCK and (fixed or items * 8 > LARGEST_BLOCK):
        raise SourceError(
            f"{name} is stored in chunks of {size / 1e9:,.1f} GB, which must be decoded whole.",
            where=where,
            fix="Write the data again with smaller chunks.",
        )
    inner = prod(a // b for a, b in zip(array.shards, array.chunks, strict=True)) if array.shards else 0
    # Some filters change the width of a value, checksums add a few bytes.
    size = size * (8 if _WIDENING & set(named) else 1) + 64
    return Limit(size, compressors[0] if compressors else "", inner, bool(shards.get("index_location") == "start"))


def refuse_codec(name: str, codec: str, where: str) -> None:
    """Refuse an array because of a codec.

    Raises
    ------
    SourceError
        Always.
    """
    if codec == "pickle":
        raise SourceError(
            f"{name} holds Python objects as pickles, which are never loaded: they could run anything.",
            where=where,
            fix="Read the data where you trust it, and write it again with a current anndata.",
        )
    raise SourceError(f"{name} is stored with {codec!r}, which is not supported.", where=where, fix=_FIX)


def refuse_zarr_claim(array: Any, sizes: Mapping[str, int], where: str) -> None:
    """Refuse an array that claims far more than is stored.

    Raises
    ------
    SourceError
        As said.
    """
    claimed = prod(array.shape) * (array.dtype.itemsize if array.dtype.kind not in "OT" else 8)
    stored = sum(sizes.get(key, 0) for key in part_keys(array)) if _n_parts(array) <= len(sizes) else 0
    if not stored and claimed > LARGEST_BLOCK:
        stored = sum(size for key, size in sizes.items() if key.startswith(f"{array.path}/"))
    refuse_claim(f"/{array.path}", claimed, stored, where)


def refuse_zarr_gaps(array: Any, sizes: Mapping[str, int], where: str) -> None:
    """Refuse an array some of whose chunks are not stored: they would read as zeros.

    Raises
    ------
    SourceError
        As said.
    """
    n = _n_parts(array)
    missing = "" if n <= len(sizes) else "more than there are files"
    missing = missing or next((key for key in part_keys(array) if key not in sizes), "")
    if missing:
        raise SourceError(
            f"/{array.path} should have {n:,} chunks, but some are missing ({missing}).",
            where=where,
            fix=f"{_LOST} Of a dense matrix, zarr leaves out chunks without counts, and "
            "nothing tells them from lost ones: write it again as a sparse one.",
        )


def refuse_lost_parts(array: Any, sizes: Mapping[str, int], where: str) -> None:
    """Refuse a column of which chunks are missing though its writer wrote even those with nothing but fill values.

    Writers that leave such chunks out make columns of which chunks are missing by right.

    Raises
    ------
    SourceError
        As said.
    """
    there = [key in sizes for key in part_keys(array)]
    if all(there) or array.fill_value is None:
        return
    length = (array.shards or array.chunks)[0]
    for number in np.flatnonzero(there).tolist():
        part = array[number * length : (number + 1) * length]
        if (part == array.fill_value).all():
            raise SourceError(
                f"/{array.path} has {there.count(False):,} of {len(there):,} chunks missing.", where=where, fix=_LOST
            )


def part_keys(array: Any) -> Iterator[str]:
    """Yield the keys under which an array's chunks or shards are stored, if they are."""
    for place in product(*(range(n) for n in _grid(array))):
        yield f"{array.path}/{array.metadata.encode_chunk_key(place)}"


def _grid(array: Any) -> list[int]:
    return [-(-n // c) for n, c in zip(array.shape, array.shards or array.chunks, strict=True)]


def _n_parts(array: Any) -> int:
    return prod(_grid(array))


def _codecs(array: Any) -> tuple[list[str], dict[str, Any]]:
    """Return the names of an array's codecs, in the order of encoding, and the configuration of its shards."""
    about = array.metadata.to_dict()
    if about["zarr_format"] == 2:
        both = [*(about.get("filters") or ()), about.get("compressor")]
        return [str(_plain(codec)["id"]) for codec in both if codec is not None], {}
    names: list[str] = []
    shards: dict[str, Any] = {}
    for codec in about["codecs"]:
        if codec["name"] == _SHARDS:
            shards = codec["configuration"]
            names += [str(inner["name"]) for inner in map(_plain, shards["codecs"])]
        else:
            names.append(str(codec["name"]))
    return [name.removeprefix("numcodecs.") for name in names], shards


def _plain(codec: Any) -> dict[str, Any]:
    if isinstance(codec, dict):
        return codec
    found: dict[str, Any] = codec.get_config() if hasattr(codec, "get_config") else codec.to_dict()
    return found


_FIX = "Write the data again with a current anndata."
_LOST = "Fetch or copy it again as a whole."
