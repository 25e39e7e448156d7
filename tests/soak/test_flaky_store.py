"""Ingestions into a store that fails 5 % of requests, loses answers and cuts them short."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import requests

from cellmill.atlas import Atlas
from cellmill.errors import StorageError
from cellmill.ingestion import ingest
from tests.faults.conftest import bucket, flaky, s3_server  # noqa: F401 - fixtures
from tests.faults.s3_server import environment
from tests.ingestion.cells import config, counts, expected, make_adata, write
from tests.soak.results import write_results

pytestmark = pytest.mark.soak

SEEDS = 20
RATE = 0.05


def test_ingestions_into_a_failing_store_complete_or_say_why(
    tmp_path: Path,
    s3_server: str,  # noqa: F811
    bucket: str,  # noqa: F811
    flaky: Callable[..., str],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    began = time.monotonic()
    first, second = make_adata(60, seed=1), make_adata(40, seed=2, start=10)
    paths = write(first, tmp_path / "a.h5ad"), write(second, tmp_path / "b.h5ad")
    outcomes: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    for seed in range(SEEDS):
        url = f"{bucket}/{seed}"
        for number, done in ((1, [first]), (2, [first, second])):
            settings = config(Path("unused"), *paths[:number], shard_cells=16).model_copy(update={"atlas": url})
            proxy = flaky(RATE, seed=2 * seed + number)
            try:
                ingest(settings.model_copy(update={"output": tmp_path / f"{seed}-{number}"}))
                outcomes["completed"] += 1
            except StorageError:
                outcomes["stopped with a clear error"] += 1
            faults.update(requests.get(f"{proxy}/__counts", timeout=10).json())
            # Without faults again: the snapshot is the old or the new one, and the rerun ends where it should.
            for key, value in environment(s3_server).items():
                monkeypatch.setenv(key, value)
            Atlas.open(url).verify().check()
            ingest(settings.model_copy(update={"output": tmp_path / f"{seed}-{number}-again"}))
            pd.testing.assert_frame_equal(counts(Atlas.open(url)), expected(done))
    write_results(
        "flaky_store",
        rate=RATE,
        ingestions=2 * SEEDS,
        outcomes=dict(outcomes),
        faults=dict(faults),
        torn=0,
        seconds=round(time.monotonic() - began, 1),
    )
