"""Versions of the Census: names become places, and a new release is a changed source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cellmill.errors import ConfigError, SourceError
from cellmill.ingestion.schedule.census import read_releases, resolve
from tests.ingestion.schedule.clockwork import FakeClock, schedule, scheduler


def release(date: str, **more: Any) -> dict[str, Any]:
    return {"release_build": date, "soma": {"uri": f"s3://census/{date}/soma/"}, "flags": {"lts": True}, **more}


RELEASES = {
    "stable": "V2",
    "V2": "2025-11-08",
    "latest": "2026-02-02",
    "2025-01-30": release("2025-01-30"),
    "2025-11-08": release("2025-11-08"),
    "2026-02-02": release("2026-02-02"),
    "2024-05-01": release("2024-05-01", retraction={"reason": "Cells were lost.", "replaced_by": "2024-05-20"}),
    "broken": {"release_build": "x"},
    "round": "about",
    "about": "round",
}


@pytest.mark.parametrize(
    ("path", "organism", "wanted"),
    [
        ("census:latest-lts", "human", ("2025-11-08", "s3://census/2025-11-08/soma/census_data/homo_sapiens")),
        ("census:2025-01-30", "mouse", ("2025-01-30", "s3://census/2025-01-30/soma/census_data/mus_musculus")),
        ("census:latest/mus_musculus", "auto", ("2026-02-02", "s3://census/2026-02-02/soma/census_data/mus_musculus")),
    ],
)
def test_a_version_is_a_place(path: str, organism: str, wanted: tuple[str, str]) -> None:
    assert resolve(path, organism, RELEASES) == wanted


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("census:2020-01-01/homo_sapiens", "no version '2020-01-01'"),
        ("census:latest-lts", "an experiment for each organism"),
        ("census:2024-05-01/homo_sapiens", "retracted: Cells were lost"),
        ("census:broken/homo_sapiens", "'soma'"),
        ("census:round/homo_sapiens", "no version 'round'"),
    ],
)
def test_what_is_no_version_is_refused(path: str, what: str) -> None:
    with pytest.raises((ConfigError, SourceError), match=what):
        resolve(path, "auto", RELEASES)


def test_a_directory_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot be read"):
        read_releases(str(tmp_path / "missing.json"))
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(SourceError, match="no JSON object"):
        read_releases(str(tmp_path / "list.json"))


def test_a_new_release_is_a_changed_source(tmp_path: Path) -> None:
    directory = tmp_path / "release.json"
    directory.write_text(json.dumps(RELEASES))
    config = schedule(tmp_path / "atlas", "census:latest-lts", census_directory=str(directory))
    clock = FakeClock()
    one = scheduler(config, clock)
    (found,) = one.dry_run()
    assert (found.kind, found.key) == ("new", "census:latest-lts")
    assert found.found is not None
    assert (found.found.stamp, found.found.source.path[-12:]) == ("census-2025-11-08", "homo_sapiens")
    directory.unlink()
    (failed,) = one.dry_run()
    assert (failed.kind, failed.key) == ("failed", "census:latest-lts")
