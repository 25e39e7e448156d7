"""Versions of the Census: names become places, and a new release is a changed source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cellmill.atlas import Atlas
from cellmill.errors import ConfigError, SourceError
from cellmill.ingestion import SourceConfig
from cellmill.ingestion.schedule.census import read_releases, resolve
from cellmill.ingestion.sources import AnnDataSource, Place, Source, registry
from tests.ingestion.cells import make_adata
from tests.ingestion.schedule.clockwork import FakeClock, schedule, scheduler

pytestmark = pytest.mark.usefixtures("without_plots")


def release(date: str, **more: Any) -> dict[str, Any]:
    return {"release_build": date, "soma": {"uri": f"s3://census/{date}/soma/"}, "flags": {"lts": True}, **more}


RELEASES = {
    "stable": "V2",
    "V2": "2025-11-08",
    "latest": "2026-02-02",
    "2025-01-30": release("2025-01-30"),
    "2025-11-08": release("2025-11-08"),
    "2026-02-02": release("2026-02-02"),
    "V1": "2024-05-01",
    "2024-05-01": release("2024-05-01", retraction={"reason": "Cells were lost."}),
    "broken": {"release_build": "x"},
    "round": "about",
    "about": "round",
}


@pytest.mark.parametrize(
    ("path", "organism", "wanted"),
    [
        ("census:latest-lts", "human", ("2025-11-08", "census:2025-11-08/human")),
        ("census:latest/mus_musculus", "auto", ("2026-02-02", "census:2026-02-02/mus_musculus")),
        ("census:V2", "auto", ("2025-11-08", "census:2025-11-08")),
    ],
)
def test_a_version_means_a_release(path: str, organism: str, wanted: tuple[str, str]) -> None:
    assert resolve(path, organism, lambda: RELEASES) == wanted


def test_a_date_needs_no_directory() -> None:
    def offline() -> dict[str, Any]:
        raise AssertionError("asked")

    assert resolve("census:2025-01-30", "mouse", offline) == ("2025-01-30", "census:2025-01-30/mouse")


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("census:newest", "no version 'newest'"),
        ("census:V1", "retracted: Cells were lost"),
        ("census:broken", "no version 'broken'"),
        ("census:round", "no version 'round'"),
    ],
)
def test_what_means_no_release_is_refused(path: str, what: str) -> None:
    with pytest.raises((ConfigError, SourceError), match=what):
        resolve(path, "auto", lambda: RELEASES)


def test_a_directory_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot be read"):
        read_releases(str(tmp_path / "missing.json"))
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(SourceError, match="no JSON object"):
        read_releases(str(tmp_path / "list.json"))


def test_a_new_release_replaces_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, atlas, clock = tmp_path / "release.json", tmp_path / "atlas", FakeClock()
    releases = {date: make_adata(12 + n, seed=n) for n, date in enumerate(("2025-11-08", "2026-05-10"))}

    class Released:
        """A format that stands for the Census, whose releases are not at hand."""

        name = "soma"

        def recognises(self, place: Place) -> bool:
            return place.is_opaque

        def open(self, place: Place, name: str, config: SourceConfig) -> Source:
            date = place.location.removeprefix("census:").partition("/")[0]
            return AnnDataSource(releases[date], name, url=place.url)

    monkeypatch.setattr(registry, "formats", lambda: {"soma": Released()})
    directory.write_text(json.dumps(RELEASES))
    config = schedule(atlas, "census:latest-lts", census_directory=str(directory))
    assert scheduler(config, clock).once().landed[0].dataset == "human"
    assert scheduler(config, clock).once().unchanged == 1
    assert Atlas.open(atlas).snapshot().n_cells == 12

    directory.write_text(json.dumps({**RELEASES, "stable": "2026-05-10", "2026-05-10": release("2026-05-10")}))
    report = scheduler(config, clock).once()
    assert ([landing.cells for landing in report.landed], report.is_well) == ([13], True)
    snapshot = Atlas.open(atlas).snapshot()
    assert {entry.source_url for entry in snapshot.shards} == {"census:2026-05-10/human"}
    assert snapshot.n_cells == 13
    directory.unlink()
    offline = scheduler(config, clock).once()
    assert (offline.vanished, offline.failed[0].source) == ((), "census:latest-lts")
