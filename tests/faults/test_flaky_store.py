"""A store that fails: what is asked of it is done or refused with a clear error, and what was done is known."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import requests

from cellmill.atlas import Atlas
from cellmill.errors import SourceError, StorageError
from cellmill.ingestion import ingest
from cellmill.storage import Storage
from tests.faults.flaky_proxy import FAULTS
from tests.ingestion.cells import config, counts, expected, make_adata, write
from tests.platform.atlas.test_atlas import row

Flaky = Callable[..., str]
BODY = bytes(range(256)) * 40


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_fails_half_of_the_time_is_done_in_the_end(bucket: str, flaky: Flaky, fault: str) -> None:
    flaky(0.5, faults=(fault,))
    storage = Storage.open(f"{bucket}/x")
    for i in range(4):
        storage.put(f"a/{i}", BODY)
    assert storage.put_if_absent("once", b"mine")
    assert not storage.put_if_absent("once", b"another's")
    storage.put("empty", b"")
    assert [storage.get(f"a/{i}") == BODY for i in range(4)] == [True] * 4
    assert (storage.get("once"), storage.get("empty")) == (b"mine", b"")
    assert storage.list("a") == [f"a/{i}" for i in range(4)]
    starts, ends = [0, 5, 9_000, 9_000], [10, 5, 9_001, 10_240]
    assert storage.get_ranges("a/0", starts, ends, gap=10) == [BODY[a:b] for a, b in zip(starts, ends, strict=True)]
    assert (storage.get_tail("a/0", 7), storage.get_tail("empty", 7)) == (BODY[-7:], b"")
    assert (storage.size("a/0"), storage.exists("a/0"), storage.exists("b")) == (len(BODY), True, False)
    storage.delete("a/0")
    storage.delete_tree("a")
    assert storage.list() == ["empty", "once"]


def test_an_answer_that_is_always_cut_short_is_an_error(bucket: str, flaky: Flaky) -> None:
    Storage.open(bucket).put("a", BODY)
    flaky(1, faults=("short",))
    with pytest.raises(StorageError, match="incomplete"):
        Storage.open(bucket).get("a")
    with pytest.raises(StorageError, match="incomplete"):
        Storage.open(bucket).get_ranges("a", [10, 5_000], [20, 9_000])


def test_a_range_beyond_the_end_is_no_fault_of_the_store(bucket: str, tmp_path: Path) -> None:
    for storage in (Storage.open(bucket), Storage.open(tmp_path)):
        storage.put("a", b"0123456789")
        with pytest.raises(SourceError, match="ends before byte 20"):
            storage.get_ranges("a", [0], [20])


@pytest.mark.parametrize("fault", ["500 after", "reset after"])
def test_a_conditional_put_whose_answer_was_lost_is_known_to_be_ours(bucket: str, flaky: Flaky, fault: str) -> None:
    url = flaky(0.5, seed=1, faults=(fault,))
    storage = Storage.open(bucket)
    assert all(storage.put_if_absent(f"mine/{i}", f"{i}".encode()) for i in range(8))
    assert not any(storage.put_if_absent(f"mine/{i}", b"another's") for i in range(8))
    assert requests.get(f"{url}/__counts", timeout=10).json()[fault] > 4


@pytest.mark.parametrize("fault", ["500 after", "reset after"])
def test_a_commit_whose_answer_was_lost_is_one_commit(bucket: str, flaky: Flaky, fault: str) -> None:
    atlas = Atlas.create(f"{bucket}/atlas")
    flaky(0.3, seed=2, faults=(fault,))
    atlas = Atlas.open(f"{bucket}/atlas")
    versions = [atlas.commit([row(f"s{i}")]) for i in range(3)]
    assert versions == [1, 2, 3]
    found = Atlas.open(f"{bucket}/atlas").snapshot()
    assert [entry.digest for entry in found.shards] == [f"s{i}" for i in range(3)]


def test_refusal_is_told_at_once_and_named(bucket: str, flaky: Flaky) -> None:
    Atlas.create(f"{bucket}/atlas").commit([row("a")])
    flaky(0, refuse="PUT")
    began = time.monotonic()
    atlas = Atlas.open(f"{bucket}/atlas")
    for attempt in (
        lambda: atlas.storage.put("a", b"x"),
        lambda: atlas.storage.put_if_absent("a", b"x"),
        lambda: atlas.commit([row("b")]),
    ):
        with pytest.raises(StorageError, match="refuses access") as caught:
            attempt()
        assert caught.value.where.startswith(f"{bucket}/atlas")
        assert "credentials" in caught.value.fix
    flaky(0, refuse="GET")
    for look in (lambda: Storage.open(bucket).get("a"), lambda: Storage.open(bucket).list(), atlas.snapshot):
        with pytest.raises(StorageError, match="refuses access"):
            look()
    assert time.monotonic() - began < 5


def test_a_store_that_is_not_there_is_told_in_bounded_time(monkeypatch: pytest.MonkeyPatch, bucket: str) -> None:
    monkeypatch.setattr("cellmill.remote_store.RETRIES", 1)
    nowhere = Storage.open("s3://there-is-no-such-bucket")
    for attempt in (lambda: nowhere.put("a", b"x"), lambda: nowhere.list("a"), lambda: nowhere.delete_tree("a")):
        with pytest.raises(StorageError, match="no such bucket") as caught:
            attempt()
        assert caught.value.where.startswith(nowhere.url)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match="does not answer"):
        Storage.open(bucket).get("a")


def test_an_ingestion_into_a_failing_store_completes_or_says_why(tmp_path: Path, bucket: str, flaky: Flaky) -> None:
    adata = make_adata(40, seed=1)
    settings = config(Path("x"), write(adata, tmp_path / "a.h5ad"), shard_cells=16)
    settings = settings.model_copy(update={"atlas": f"{bucket}/atlas"})
    url = flaky(0.1, seed=0)
    try:
        ingest(settings.model_copy(update={"output": tmp_path / "run"}))
    except StorageError:
        ingest(settings.model_copy(update={"output": tmp_path / "again"}))
    atlas = Atlas.open(f"{bucket}/atlas")
    pd.testing.assert_frame_equal(counts(atlas), expected([adata]))
    assert atlas.verify().sound
    faults = requests.get(f"{url}/__counts", timeout=10).json()
    assert sum(faults.values()) - faults["requests"] > 5
