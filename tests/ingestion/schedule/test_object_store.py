"""A schedule whose atlas, state, lock and sources are in an object store."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import requests
from moto.server import ThreadedMotoServer

from cellmill.atlas import Atlas
from cellmill.lock import acquire
from cellmill.storage import Storage
from tests.ingestion.cells import make_adata, write
from tests.ingestion.schedule.clockwork import DAY, FakeClock, schedule, scheduler

pytestmark = pytest.mark.usefixtures("without_plots")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
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
    requests.put(f"http://{host}:{port}/schedules", timeout=10).raise_for_status()
    yield "s3://schedules"
    server.stop()


def test_ticks_in_an_object_store(tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELLMILL_CACHE", str(tmp_path / "cache"))
    data, clock = Storage.open(f"{bucket}/data"), FakeClock()

    def upload(name: str, seed: int) -> None:
        data.put(name, write(make_adata(10, seed=seed), tmp_path / name).read_bytes())

    upload("a.h5ad", 1)
    upload("b.h5ad", 2)
    config = schedule(f"{bucket}/atlas", f"{bucket}/data/*.h5ad", output=str(tmp_path / "run"))
    one = scheduler(config, clock).once()
    assert (len(one.landed), one.snapshot) == (2, 2)

    clock.time += DAY
    upload("b.h5ad", 3)
    data.delete("a.h5ad")
    two = scheduler(config, clock).once()
    assert ([landing.dataset for landing in two.landed], two.vanished) == (["b"], (f"{bucket}/data/a.h5ad",))
    assert two.snapshot == 3

    clock.time += DAY
    storage = Storage.open(f"{bucket}/atlas")
    other = acquire(storage, "schedule-nightly", clock=lambda: clock.time.timestamp())
    assert other is not None
    assert scheduler(config, clock).once().outcome == "skipped"
    clock.time += timedelta(seconds=121)
    assert scheduler(config, clock).once().unchanged == 1
    assert json.loads(storage.get("schedule/nightly/status.json"))["history"][0]["outcome"] == "unchanged"
    assert Atlas.open(f"{bucket}/atlas").snapshot().n_cells == 20
    events = [json.loads(line)["event"] for line in (tmp_path / "run/log-2026-03.jsonl").read_text().splitlines()]
    assert (events.count("landed"), events.count("skipped")) == (3, 1)
