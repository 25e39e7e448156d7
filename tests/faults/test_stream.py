"""The stream over an object store: the same bytes as from a local disk, or an error that names the shard."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from cellmill import remote_store, store_errors
from cellmill.atlas import Atlas, ShardEntry
from cellmill.atlas.exporting import export_arrow
from cellmill.atlas.link import read_link
from cellmill.errors import CellmillError, IntegrityError, StorageError
from cellmill.ingestion import IngestConfig, SourceConfig
from cellmill.ingestion.linking import link
from cellmill.storage import Storage
from cellmill.stream import Stream
from tests.faults.s3_server import environment, make_bucket
from tests.ingestion.test_linking import forget, messy, rechunked, write_store
from tests.platform.stream.conftest import make_atlas
from tests.platform.stream.test_stream import stream

Flaky = Callable[..., str]
LAYOUTS = ("zarr", "arrow", "anndata")


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CELLMILL_CACHE", str(tmp_path / "cache"))
    forget()


def upload(folder: Path, url: str) -> None:
    here, there = Storage.open(folder), Storage.open(url)
    for key in here.list():
        there.put(key, here.get(key))


@pytest.fixture(scope="module")
def atlases(s3_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[Atlas, str]]]:
    """Return by layout an atlas on the local disk, and the URL of the same in a bucket."""
    folder = tmp_path_factory.mktemp("stream")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for key, value in environment(s3_server).items():
            patch.setenv(key, value)
        bucket = make_bucket(s3_server)
        local = {"zarr": make_atlas(folder / "zarr")}
        export_arrow(local["zarr"].snapshot(), folder / "arrow")
        rechunked(write_store(messy(), folder / "store.zarr"), 300)
        upload(folder / "store.zarr", f"{bucket}/store.zarr")
        settings: dict[str, Any] = {"source": {"obs": {"donor": "kind"}, "dataset": "linked"}, "shard_cells": 40}
        sources = (SourceConfig(path=f"{bucket}/store.zarr", **settings.pop("source")),)
        link(IngestConfig(atlas=str(folder / "anndata"), sources=sources, backend="local", **settings))
        local |= {name: Atlas.open(folder / name) for name in LAYOUTS[1:]}
        for name in LAYOUTS:
            upload(folder / name, f"{bucket}/{name}")
        yield {name: (atlas, f"{bucket}/{name}") for name, atlas in local.items()}


def digest(source: Stream, epoch: int = 0) -> str:
    state = hashlib.sha256()
    for batch in source.epoch(epoch):
        for array in (batch.cell_id, batch.gene, batch.value, batch.cu_seqlens, batch.labels["kind"]):
            state.update(array.tobytes())
    return state.hexdigest()


def streamed(atlas: Atlas, **changes: Any) -> Stream:
    """Return a stream of few groups, which ask the store for more at once."""
    return stream(atlas, group_cells=1000, **changes)


def asked(url: str) -> int:
    return int(requests.get(f"{url}/__counts", timeout=10).json().get("requests", 0))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_second_epoch_asks_the_store_for_nothing(
    atlases: dict[str, tuple[Atlas, str]], flaky: Flaky, layout: str, tmp_path: Path
) -> None:
    local, url = atlases[layout]
    expected = digest(streamed(local))
    forget()
    proxy = flaky(0)
    source = streamed(Atlas.open(url))
    assert digest(source) == expected
    first = asked(proxy)
    assert digest(source) == expected
    assert asked(proxy) == first > 0
    kept = [path for path in (tmp_path / "cache" / "stream").rglob("*") if path.is_file()]
    # A shard that is opened anew finds all of its parts; that a linked store is as it was is asked of the store.
    forget()
    assert digest(source) == expected
    assert asked(proxy) == first + (layout == "anndata") * len(source.shards)
    # A damaged copy is fetched again.
    kept[0].write_bytes(kept[0].read_bytes()[:-1] + b"?")
    assert digest(streamed(Atlas.open(url))) == expected
    # Nothing is kept unless there is room for it.
    forget()
    source = streamed(Atlas.open(url), cache_gb=0)
    assert digest(source) == expected
    before = asked(proxy)
    assert digest(source) == expected
    assert asked(proxy) > before


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_store_that_fails_now_and_then_gives_the_same_epoch(
    atlases: dict[str, tuple[Atlas, str]], flaky: Flaky, layout: str
) -> None:
    local, url = atlases[layout]
    expected = digest(streamed(local), 1)
    for rate in (0.05, 0.2):
        forget()
        proxy = flaky(rate, seed=3)
        source = streamed(Atlas.open(url), cache_gb=0)
        assert digest(source, 1) == expected
        assert source.skipped == {}
        counts = requests.get(f"{proxy}/__counts", timeout=10).json()
        assert rate < 0.1 or len(counts) > 4


@pytest.mark.parametrize(
    ("layout", "fault"), [("zarr", "short"), ("zarr", "503 before"), ("arrow", "cut"), ("anndata", "short")]
)
def test_a_store_that_never_answers_in_full_ends_the_stream_with_the_shard_named(
    atlases: dict[str, tuple[Atlas, str]], flaky: Flaky, layout: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, url = atlases[layout]
    monkeypatch.setattr("cellmill.remote_store.RETRIES", 1)
    monkeypatch.setattr(store_errors, "_ATTEMPTS", 2)
    source = streamed(Atlas.open(url), on_corrupt="skip")
    _ = source.unlabelled  # the cells' metadata is there
    flaky(1, faults=(fault,))
    with pytest.raises((StorageError, IntegrityError)) as caught:
        digest(source)
    told = f"{caught.value.what} {caught.value.where}"
    assert any(entry.digest in told for entry in Atlas.open(atlases[layout][0].url).snapshot().shards)


def _files(atlas: Atlas, entry: ShardEntry) -> dict[str, int]:
    return {f"store.zarr/{key}": size for key, size in read_link(atlas.storage, entry).files.items()}


def largest_file(local: Atlas, url: str, layout: str) -> tuple[Storage, str]:
    """Return where the largest file of the counts of a shard lies: its storage and key."""
    bucket = url.rpartition("/")[0]
    entry = local.snapshot().shards[0]
    remote = Storage.open(bucket if layout == "anndata" else url)
    prefix = "store.zarr/layers/counts/data" if layout == "anndata" else entry.shard_path
    keys = [key for key in remote.list(prefix.rpartition("/")[0]) if key.startswith(prefix) and "zarr.json" not in key]
    return remote, max((key for key in keys if "indptr" not in key), key=remote.size)


def flipped(content: bytes) -> bytes:
    bad = bytearray(content)
    bad[len(bad) // 2] ^= 1
    return bytes(bad)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_shard_that_is_deleted_or_damaged_in_the_store_is_named_or_counted(
    atlases: dict[str, tuple[Atlas, str]], layout: str
) -> None:
    local, url = atlases[layout]
    entry = local.snapshot().shards[0]
    remote, largest = largest_file(local, url, layout)
    good = remote.get(largest)
    bad = flipped(good)
    having = [one for one in local.snapshot().shards if layout == "anndata" and largest in _files(local, one)]
    lost = {f"{one.dataset}/{one.digest}" for one in having or [entry]}
    for content in (bad, good[: len(good) // 3], None):
        remote.delete(largest) if content is None else remote.put(largest, content)
        forget()
        with pytest.raises(CellmillError) as caught:
            digest(streamed(Atlas.open(url), cache_gb=0))
        assert isinstance(caught.value, IntegrityError)
        assert any(name.partition("/")[2] in f"{caught.value.what} {caught.value.where}" for name in lost)
        forget()
        source = streamed(Atlas.open(url), cache_gb=0, on_corrupt="skip")
        assert sum(batch.n_cells for batch in source.epoch(0)) == source.n_cells - sum(source.skipped.values())
        # A bit of a linked store's chunk is that of one cell, and files of another size are not looked into.
        gone = set(source.skipped)
        assert gone == lost or (layout == "anndata" and content == bad and gone < lost)
        assert gone
    remote.put(largest, good)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_shard_that_is_put_back_is_read_whatever_was_kept_of_the_damaged_one(
    atlases: dict[str, tuple[Atlas, str]], layout: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    local, url = atlases[layout]
    expected = digest(streamed(local))
    remote, largest = largest_file(local, url, layout)
    good = remote.get(largest)
    for case, content in enumerate((flipped(good), good[: len(good) // 3], good[: len(good) // 2] + good)):
        monkeypatch.setenv("CELLMILL_CACHE", str(tmp_path / str(case)))
        forget()
        remote.put(largest, content)
        source = streamed(Atlas.open(url), on_corrupt="skip")
        assert sum(batch.n_cells for batch in source.epoch(0)) == source.n_cells - sum(source.skipped.values())
        remote.put(largest, good)
        # Another process finds what this one kept; this one goes on with what it has open.
        for opened in (True, False):
            if not opened:
                forget()
            again = streamed(Atlas.open(url), on_corrupt="skip")
            assert (digest(again), again.skipped) == (expected, {})
        assert source.skipped


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("cache_gb", [0, 1])
def test_a_bit_that_flips_on_the_way_is_asked_for_again(
    atlases: dict[str, tuple[Atlas, str]],
    layout: str,
    cache_gb: float,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    local, url = atlases[layout]
    expected = digest(streamed(local))
    answers, turn = [0], [0]
    fetch = remote_store.fetch

    def noisy(store: Any, key: str, part: Any) -> bytes:
        content = fetch(store, key, part)
        answers[0] += 1
        return flipped(content) if answers[0] == turn[0] and content else content

    atlas = Atlas.open(url)
    monkeypatch.setattr("cellmill.storage.fetch", noisy)
    for wanted in range(1, 1000, 3):
        monkeypatch.setenv("CELLMILL_CACHE", str(tmp_path / str(wanted)))
        forget()
        turn[0] = 0
        source = streamed(atlas, cache_gb=cache_gb)
        answers[0], turn[0] = 0, wanted
        assert digest(source) == expected
        if answers[0] < wanted:
            break
    assert wanted > 8
