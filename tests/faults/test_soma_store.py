"""TileDB-SOMA on a store that never answers: an error that says so, after a bounded time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from cellmill.errors import StorageError
from cellmill.ingestion.config import SourceConfig
from cellmill.ingestion.sources import Place, soma_address
from cellmill.ingestion.sources.soma import FORMAT
from tests.faults.s3_server import environment, make_bucket
from tests.ingestion.cells import make_adata

soma = pytest.importorskip("tiledbsoma", reason="tiledbsoma is not installed (the extra census)")
soma_io: Any = pytest.importorskip("tiledbsoma.io")

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def experiment(s3_server: str) -> str:
    with pytest.MonkeyPatch.context() as patch:
        for key, value in environment(s3_server).items():
            patch.setenv(key, value)
        uri = f"{make_bucket(s3_server)}/exp"
        context = soma.SOMATileDBContext(tiledb_config=soma_address.tiledb_config(uri))
        soma_io.from_anndata(uri, make_adata(20, 10), measurement_name="RNA", context=context)
    return uri


@pytest.mark.parametrize("fault", ["never", "reset before"])
def test_a_store_that_gives_no_answer_is_told_soon(
    s3_server: str, experiment: str, flaky: Callable[..., str], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    for key, value in environment(s3_server).items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(soma_address, "RETRIES", 1)
    monkeypatch.setattr(soma_address, "SILENCE_S", 1.0)
    config = SourceConfig(path=experiment)
    source = FORMAT.open(Place(experiment), "cells", config)
    assert source.n_cells == 20
    source.close()
    flaky(1, faults=(fault,))
    began = time.monotonic()
    with pytest.raises(StorageError, match="does not answer") as caught:
        FORMAT.open(Place(experiment), "cells", config)
    assert caught.value.where == experiment
    # Twice a second of silence, with the pause between.
    assert time.monotonic() - began < 8


def test_the_patience_is_that_of_other_sources() -> None:
    """The census, too, whose address no environment changes."""
    for address in ("s3://bucket/exp", "census:2025-11-08"):
        settings = soma_address.tiledb_config(address)
        tries = int(settings["vfs.s3.connect_max_tries"]) + 1
        for name in ("vfs.s3.connect_timeout_ms", "vfs.s3.request_timeout_ms"):
            assert tries * int(settings[name]) <= 30_000
