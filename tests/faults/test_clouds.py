"""The whole line on Azure and on Google's store: sources there, the atlas there, read and streamed from there.

Azure is Azurite. Google's store is the S3 server behind a proxy that takes Google's requests, which differ in a header.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pandas as pd
import pytest

from cellmill.atlas import Atlas
from cellmill.errors import SourceError, StorageError
from cellmill.ingestion import IngestConfig, SourceConfig, ingest
from cellmill.storage import Storage
from cellmill.stream import Stream, StreamConfig
from cellmill.tokens import Tokeniser
from tests.faults import azure
from tests.faults.s3_server import make_bucket
from tests.faults.test_flaky_store import BODY
from tests.ingestion.cells import counts, make_adata
from tests.platform.stream.test_stream import TOKENS


@pytest.fixture(params=["az", "gs"])
def cloud(
    request: pytest.FixtureRequest,
    s3_server: str,
    flaky: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Iterator[str]:
    """URL of an empty container or bucket."""
    monkeypatch.setenv("CELLMILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)  # where reports go unless they lie in the atlas
    with ExitStack() as stack:
        if request.param == "az":
            endpoint = stack.enter_context(azure.azurite(tmp_path / "azurite"))
            for key, value in azure.environment(endpoint).items():
                monkeypatch.setenv(key, value)
            yield azure.make_container(endpoint, "cells")
            return
        account = {"gcs_base_url": flaky(0), "disable_oauth": True, "client_email": "", "private_key": ""}
        (tmp_path / "account.json").write_text(json.dumps({**account, "private_key_id": ""}))
        monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(tmp_path / "account.json"))
        monkeypatch.setenv("GOOGLE_ALLOW_HTTP", "true")
        yield make_bucket(s3_server).replace("s3://", "gs://")


def settings(atlas: str, root: str) -> IngestConfig:
    sources = tuple(
        SourceConfig(path=f"{root}/{name}", dataset=name[0], organism="human") for name in ("a*.h5ad", "b.zarr")
    )
    return IngestConfig(atlas=atlas, sources=sources, backend="local", shard_cells=32)


def streamed(atlas: Atlas) -> list[tuple[bytes, bytes]]:
    config = StreamConfig(batch_size=32, lanes=4, backend="local")
    stream = Stream(atlas.snapshot().select(), Tokeniser(TOKENS), config)
    return [(batch.gene.tobytes(), batch.value.tobytes()) for batch in stream.epoch(0)]


def test_the_whole_line(cloud: str, tmp_path: Path) -> None:
    storage = Storage.open(f"{cloud}/x")
    storage.put("d/a", BODY)
    storage.put("empty", b"")
    assert [storage.put_if_absent("once", body) for body in (b"mine", b"another's")] == [True, False]
    assert (storage.get("d/a"), storage.get("empty"), storage.get("once")) == (BODY, b"", b"mine")
    assert (storage.get_tail("d/a", 7), storage.get_tail("d/a", len(BODY) + 1)) == (BODY[-7:], BODY)
    assert (storage.get_tail("empty", 7), storage.get_ranges("d/a", [3, 900], [5, 901])) == (
        b"",
        [BODY[3:5], BODY[900:901]],
    )
    with pytest.raises(SourceError, match="ends before byte"):
        storage.get_ranges("d/a", [0], [len(BODY) + 1])
    with pytest.raises(StorageError, match="no such bucket"):
        Storage.open(f"{cloud[:5]}nothing-here/x").put("a", b"1")
    storage.delete_tree("d")
    storage.delete("once")
    assert storage.list() == ["empty"]

    (tmp_path / "in").mkdir()
    make_adata(60, seed=1).write_h5ad(tmp_path / "in/a.h5ad")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make_adata(60, seed=2).write_zarr(tmp_path / "in/b.zarr")
    for path in (path for path in tmp_path.rglob("in/**/*") if path.is_file()):
        Storage.open(f"{cloud}/in").put_file(path.relative_to(tmp_path / "in").as_posix(), path)
    config = settings(f"{cloud}/atlas", f"{cloud}/in")
    there = ingest(config)
    here = ingest(settings(str(tmp_path / "atlas"), str(tmp_path / "in")))
    assert [report.source_digest for report in there.reports] == [report.source_digest for report in here.reports]
    atlas, local = Atlas.open(f"{cloud}/atlas"), Atlas.open(tmp_path / "atlas")
    pd.testing.assert_frame_equal(counts(atlas), counts(local))
    assert not ingest(config).changed
    assert [entry.version for entry in atlas.log()] == [1, 0]
    assert atlas.verify().sound
    assert streamed(atlas) == streamed(local)
