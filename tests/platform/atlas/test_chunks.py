"""Reading chunks straight from shard files, against zarr; and that no damaged byte is read without a word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cellmill.atlas import Atlas, ShardEntry, layout, open_shard
from cellmill.atlas.chunks import ChunkedArray
from cellmill.errors import IntegrityError
from cellmill.storage import Storage
from tests.platform.atlas.builders import add_shard, random_counts


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> tuple[Storage, ShardEntry]:
    """Return a shard of several files of several small chunks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cellmill.atlas.layout.CHUNK", 64)
        patch.setattr("cellmill.atlas.writing.CHUNK", 64)
        patch.setattr("cellmill.atlas.chunk_writing.CHUNK", 64)
        patch.setattr("cellmill.atlas.layout.CHUNKS_PER_SHARD", 4)
        atlas = Atlas.create(tmp_path_factory.mktemp("chunks"))
        entry = add_shard(atlas, "data", random_counts(90, 40, largest=300))
    assert (atlas.storage.local_path(entry.shard_path) / "X/data/c/3").exists()
    return atlas.storage, entry


def entries(array: ChunkedArray, begin: list[int], end: list[int]) -> Any:
    out = np.empty(sum(end) - sum(begin), array.dtype)

    def emit(part: Any, place: slice) -> None:
        out[place] = part

    array.read(np.array(begin, np.int64), np.array(end, np.int64), emit)
    return out


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, 1050), max_size=12))
@pytest.mark.parametrize("name", ["indices", "data"])
def test_any_ranges_are_what_zarr_reads(shard: tuple[Storage, ShardEntry], name: str, cuts: list[int]) -> None:
    import zarr

    storage, entry = shard
    array = ChunkedArray(storage, f"{entry.shard_path}/X/{name}")
    whole: Any = zarr.open_array(storage.zarr_store(f"{entry.shard_path}/X/{name}"), mode="r")[:]
    assert array.length == whole.size == entry.nnz
    points = sorted(min(cut, entry.nnz) for cut in cuts)
    points = points[: len(points) // 2 * 2]
    begin, end = points[::2], points[1::2]
    expected = [whole[a:b] for a, b in zip(begin, end, strict=True)]
    np.testing.assert_array_equal(entries(array, begin, end), np.concatenate([whole[:0], *expected]))


def test_every_damaged_byte_is_found(tmp_path: Path) -> None:
    atlas = Atlas.create(tmp_path)
    entry = add_shard(atlas, "data", random_counts(300, 60))
    for name in ("indices", "data"):
        path = f"{entry.shard_path}/X/{name}"
        file = atlas.storage.local_path(f"{path}/c/0")
        good = file.read_bytes()
        for position in np.random.default_rng(0).integers(0, len(good), 300).tolist():
            file.write_bytes(good[:position] + bytes([good[position] ^ 0x10]) + good[position + 1 :])
            with pytest.raises(IntegrityError, match=entry.digest):
                entries(ChunkedArray(atlas.storage, path), [5], [entry.nnz - 5])
        for length in (0, 10, len(good) // 2, len(good) - 1):
            file.write_bytes(good[:length])
            with pytest.raises(IntegrityError, match=entry.digest):
                entries(ChunkedArray(atlas.storage, path), [0], [entry.nnz])
        file.unlink()
        with pytest.raises(IntegrityError, match="cannot be read"):
            entries(ChunkedArray(atlas.storage, path), [0], [1])
        file.write_bytes(good)
        assert entries(ChunkedArray(atlas.storage, path), [0], [entry.nnz]).size == entry.nnz


def test_an_array_of_another_kind_is_refused(tmp_path: Path) -> None:
    atlas = Atlas.create(tmp_path)
    entry = add_shard(atlas, "data", random_counts(30, 20))
    with pytest.raises(IntegrityError, match="metadata"):
        ChunkedArray(atlas.storage, f"{entry.shard_path}/X/nothing")
    about = atlas.storage.local_path(f"{entry.shard_path}/X/data/zarr.json")
    about.write_text(about.read_text().replace('"blosc"', '"zstd"'))
    with pytest.raises(IntegrityError, match="stored with bytes, zstd, crc32c"):
        ChunkedArray(atlas.storage, f"{entry.shard_path}/X/data")


def test_from_an_object_store(shard: tuple[Storage, ShardEntry], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same files through range requests, as a remote store answers them."""
    storage, entry = shard
    monkeypatch.setattr(Storage, "is_local", property(lambda self: False))
    array = ChunkedArray(storage, f"{entry.shard_path}/X/data")
    remote = entries(array, [3, 500], [90, entry.nnz])
    monkeypatch.undo()
    counts = open_shard(storage, entry).gather([0], [90])[1]
    np.testing.assert_array_equal(remote, np.concatenate([counts[3:90], counts[500:]]))
    assert layout.CHUNK > 64
