"""Many processes that ingest overlapping cells at once: a linear history, no lost update, no cell twice."""

import time
from pathlib import Path

import pytest

from tests.faults.conftest import bucket, s3_server  # noqa: F401 - fixtures
from tests.faults.racing import check, race
from tests.soak.results import write_results

pytestmark = pytest.mark.soak


def run(name: str, url: str, processes: int, commits: int) -> None:
    began = time.monotonic()
    acknowledged = race(url, processes, commits)
    seconds = round(time.monotonic() - began, 1)
    check(url, acknowledged)
    figures = {"processes": processes, "commits": len(acknowledged), "seconds": seconds, "lost": 0}
    write_results("concurrent_commits", **{name: figures})


def test_eight_processes_of_ten_commits(tmp_path: Path) -> None:
    run("local disk", str(tmp_path / "atlas"), 8, 10)


def test_four_processes_of_three_commits_in_an_object_store(bucket: str) -> None:  # noqa: F811
    run("S3 server", f"{bucket}/atlas", 4, 3)
