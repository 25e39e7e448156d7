"""Scratch folders: none is lost to another process that cleans up, none is left by a process that was killed."""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cellmill.scratch import ScratchFolder


@pytest.fixture(autouse=True)
def _folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_folders_made_at_once_do_not_take_each_other_for_left_ones(tmp_path: Path) -> None:
    """Every maker first deletes what nobody holds: it must spare what another is about to hold."""

    def use(number: int) -> None:
        with ScratchFolder() as folder:
            (folder / "mine").write_text(str(number))
            assert (folder / "mine").read_text() == str(number)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(use, range(400)))
    assert list(tmp_path.iterdir()) == []


def test_what_nobody_holds_is_deleted(tmp_path: Path) -> None:
    left = tmp_path / "cellmill-scratch-left"
    left.mkdir()
    (left / "file").touch()
    with ScratchFolder() as folder:
        assert list(tmp_path.iterdir()) == [folder]
