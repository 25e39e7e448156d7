from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
import pytest
import requests
from moto.server import ThreadedMotoServer

from cellmill.atlas import Atlas
from cellmill.atlas.collecting import Forget, collect
from cellmill.atlas.exporting import export_arrow
from cellmill.atlas.rollback import rollback
from cellmill.atlas.tags import add_tag, delete_tag
from cellmill.atlas.withdrawing import remove
from cellmill.errors import IntegrityError
from cellmill.ingestion import ingest
from cellmill.storage import Storage
from tests.ingestion.cells import config, counts, expected, make_adata, write
from tests.ingestion.test_duplicates import POLICY, check_each_once, overlapping


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for key, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ALLOW_HTTP": "true",
    }.items():
        monkeypatch.setenv(key, value)
    # The server's state outlives it within a process, so each test has a bucket of its own.
    name = f"cells-{tmp_path.name.replace('_', '-')}"
    requests.put(f"http://{host}:{port}/{name}", timeout=10).raise_for_status()
    yield f"s3://{name}"
    server.stop()


def test_an_atlas_in_an_object_store_equals_one_on_disk(tmp_path: Path, bucket: str) -> None:
    first, second = make_adata(30, seed=1), make_adata(20, seed=2, start=10)
    paths = write(first, tmp_path / "a.h5ad"), write(second, tmp_path / "b.h5ad")
    local = config(tmp_path / "atlas", *paths, shard_cells=12, output=tmp_path / "run1")
    ingest(local)
    remote = local.model_copy(update={"atlas": f"{bucket}/atlas", "output": tmp_path / "run2"})
    assert ingest(remote).snapshot == 1
    again = ingest(remote.model_copy(update={"output": tmp_path / "run3"}))
    assert (again.changed, len(again.unchanged)) == (False, 2)

    atlas = Atlas.open(f"{bucket}/atlas")
    here = Atlas.open(tmp_path / "atlas").snapshot()
    assert [(e.key, e.checksum) for e in atlas.snapshot().shards] == [(e.key, e.checksum) for e in here.shards]
    pd.testing.assert_frame_equal(counts(atlas), expected([first, second]))
    assert atlas.snapshot().select("dataset = 'b'").n_cells == 20
    assert atlas.verify().sound
    assert not Storage.open(f"{bucket}/atlas").list("staging")

    # Exported from the store and into it: with the run of content hashes, and read by ranges.
    for url in (f"{bucket}/arrow", str(tmp_path / "arrow")):
        exported = export_arrow(atlas.snapshot(), url)
        export = Atlas.open(url)
        assert (exported.cells, exported.exported_from) == (50, atlas.snapshot().name)
        assert export.verify().sound
        assert all(entry.hash_run for entry in export.snapshot().shards)
        pd.testing.assert_frame_equal(counts(export), expected([first, second]))


def test_commits_at_once_in_an_object_store_lose_nothing(tmp_path: Path, bucket: str) -> None:
    names = [f"d{i}" for i in range(4)]
    for i, name in enumerate(names):
        write(make_adata(10, seed=i), tmp_path / f"{name}.h5ad")

    def one(name: str) -> int:
        own = config(Path("unused"), tmp_path / f"{name}.h5ad", output=tmp_path / f"run-{name}")
        return ingest(own.model_copy(update={"atlas": f"{bucket}/atlas"})).snapshot

    with ThreadPoolExecutor(4) as pool:
        versions = list(pool.map(one, names))
    assert sorted(versions) == [1, 2, 3, 4]
    snapshot = Atlas.open(f"{bucket}/atlas").snapshot()
    assert sorted(entry.dataset for entry in snapshot.shards) == names
    assert snapshot.atlas.verify().sound


def test_a_lost_object_is_found(tmp_path: Path, bucket: str) -> None:
    path = write(make_adata(10), tmp_path / "a.h5ad")
    ingest(config(Path("x"), path, output=tmp_path / "run").model_copy(update={"atlas": f"{bucket}/atlas"}))
    atlas = Atlas.open(f"{bucket}/atlas")
    (entry,) = atlas.snapshot().shards
    atlas.storage.delete(f"{entry.shard_path}/X/data/c/0")
    assert not atlas.verify().sound
    with pytest.raises(IntegrityError):
        counts(atlas)


def test_of_two_ingestions_at_once_into_an_object_store_each_shared_cell_is_kept_once(
    tmp_path: Path, bucket: str
) -> None:
    first = make_adata(30, seed=1)
    paths = write(first, tmp_path / "a.h5ad"), write(overlapping(10, 2, shared=15, of=first), tmp_path / "b.h5ad")
    jobs = [
        config(Path("x"), path, duplicates=POLICY, output=tmp_path / f"run-{path.stem}").model_copy(
            update={"atlas": f"{bucket}/atlas"}
        )
        for path in paths
    ]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        results = [future.result() for future in [pool.submit(ingest, job) for job in jobs]]
    assert sorted(result.snapshot for result in results) == [1, 2]
    check_each_once(Atlas.open(f"{bucket}/atlas"), 40)


def test_an_atlas_in_an_object_store_is_kept_in_order(tmp_path: Path, bucket: str) -> None:
    """Tags, withdrawals, rollback and garbage collection, as on a disk."""
    adata, other = make_adata(30, seed=1), make_adata(20, seed=2)
    url, a, b = f"{bucket}/kept", write(adata, tmp_path / "a.h5ad"), write(other, tmp_path / "b.h5ad")
    obs = {"source": {"obs": {"donor": "donor"}}, "shard_cells": 12}
    ingest(config(Path("x"), a, output=tmp_path / "r1", **obs).model_copy(update={"atlas": url}))
    ingest(config(Path("x"), b, output=tmp_path / "r2", **obs).model_copy(update={"atlas": url}))
    atlas = Atlas.open(url)
    add_tag(atlas, "both")
    assert rollback(atlas, 1) == (3, True)
    assert rollback(atlas, "both") == (4, True)
    assert remove(atlas, "donor = 'd1'", "consent").cells == {"a": 10, "b": 7}
    pd.testing.assert_frame_equal(counts(atlas), expected([x[x.obs["donor"] != "d1"] for x in (adata, other)]))
    atlas.storage.put("staging/left/x.arrow", b"x")
    assert collect(atlas, grace_s=60).young == 1
    done = collect(atlas, Forget(), grace_s=0)
    assert (done.forgotten, done.tagged, done.withheld) == ((0, 1, 3, 4), (2,), {"1": (2,)})
    atlas.verify("both").check()
    delete_tag(atlas.storage, "both")
    collect(atlas, Forget(), grace_s=0)
    atlas.verify().check()
    named = {entry.cells_path for entry in atlas.snapshot().shards}
    assert set(atlas.storage.list("cells")) == named
    assert not atlas.storage.list("leases")
