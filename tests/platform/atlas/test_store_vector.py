"""Arrays of other people's zarr stores, beside what zarr reads."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs import LZ4, Blosc, Delta, GZip
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, ShardingCodec, ZstdCodec

from cellmill.atlas.store_codecs import chunk_format
from cellmill.atlas.store_vector import StoreVector, open_vectors
from cellmill.errors import SourceError
from cellmill.storage import Storage

N = 1000
KINDS: dict[str, tuple[int, str, dict[str, Any]]] = {
    "blosc": (2, "<i4", {"compressors": Blosc("zstd")}),
    "other byte order": (2, ">f4", {"compressors": GZip()}),
    "as it is": (2, "<u2", {"compressors": None}),
    "any codec of format 2": (2, "<i8", {"compressors": LZ4()}),
    "filters": (2, "<i4", {"compressors": Blosc(), "filters": [Delta("<i4")]}),
    "truth values": (2, "|b1", {}),
    "zstd": (3, "<f8", {"compressors": ZstdCodec()}),
    "half precision": (3, "<f2", {"compressors": GzipCodec()}),
    "checked": (3, "<u4", {"compressors": [BloscCodec(), Crc32cCodec()]}),
    "big-endian": (3, "<u4", {"compressors": None, "serializer": BytesCodec(endian="big")}),
    "several codecs": (3, "<u4", {"compressors": [ZstdCodec(), GzipCodec()]}),
    "many chunks a file": (3, "<i4", {"compressors": [BloscCodec()], "shards": (280,)}),
    "index first": (
        3,
        "<i4",
        {
            "chunks": (280,),
            "compressors": None,
            "serializer": ShardingCodec(chunk_shape=(70,), codecs=[BytesCodec(), ZstdCodec()], index_location="start"),
        },
    ),
}
THROUGH_ZARR = {"filters", "several codecs", "index first"}


def write(folder: Path, kind: str, hole: bool = False) -> tuple[StoreVector, Any]:
    version, dtype, how = KINDS[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        group = zarr.open_group(folder, mode="w", zarr_format=version)  # type: ignore[arg-type]
        array: Any = group.create_array("v", shape=(N,), dtype=dtype, fill_value=0, **{"chunks": (70,), **how})
        values = (np.random.default_rng(0).integers(0, 200, N)).astype(dtype)
        if hole:
            values[100:700] = 0  # chunks of it are not written at all
        array[:] = values
    return opened(folder), values


def opened(folder: Path) -> StoreVector:
    store = Storage.open(folder.parent)
    (found,) = open_vectors(store, folder.name, ["v"], set(store.list()))
    return found


@pytest.mark.parametrize("hole", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_pieces_are_those_that_zarr_reads(tmp_path: Path, kind: str, hole: bool) -> None:
    vector, values = write(tmp_path / "a.zarr", kind, hole)
    assert (chunk_format(vector._array) is None) == (kind in THROUGH_ZARR)
    assert np.array_equal(vector.read(0, N), values)

    @given(st.lists(st.integers(0, N), max_size=12, unique=True))
    @settings(max_examples=20)
    def check(cuts: list[int]) -> None:
        edges = sorted(cuts)
        spans = list(zip(edges[::2], edges[1::2], strict=False))
        found = vector.reading(spans)
        for low, high in spans:
            out = np.empty(high - low, vector.dtype)
            found.take(low, high, out)
            assert np.array_equal(out, values[low:high])

    check()


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - THROUGH_ZARR))
def test_what_is_cut_short_is_a_source_error(tmp_path: Path, kind: str) -> None:
    vector, _ = write(tmp_path / "a.zarr", kind)
    files = [key for key in vector.files(0, N) if not key.endswith((".json", ".zarray"))]
    path = tmp_path / files[1]
    whole = path.read_bytes()
    for n in (len(whole) // 2, 7, 0):
        path.write_bytes(whole[:n])
        with pytest.raises(SourceError, match="v cannot be read"):
            opened(tmp_path / "a.zarr").read(0, N)
    with pytest.raises(SourceError, match="ends before"):
        vector.read(N - 1, N + 1)
