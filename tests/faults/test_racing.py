"""Processes that commit at once: a small draw of what `make soak` does."""

from pathlib import Path

from tests.faults.racing import check, race


def test_processes_that_ingest_at_once_make_a_linear_history(tmp_path: Path) -> None:
    check(str(tmp_path / "atlas"), race(str(tmp_path / "atlas"), 3, 2))


def test_processes_that_ingest_into_an_object_store_at_once_make_a_linear_history(bucket: str) -> None:
    check(f"{bucket}/atlas", race(f"{bucket}/atlas", 2, 2))
