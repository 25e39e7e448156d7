"""Compaction over an object store that loses requests, and what a killed one leaves; see `test_killed` for that."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from cellmill.atlas import Atlas
from cellmill.atlas.compacting import compact
from cellmill.atlas.withdrawing import remove
from cellmill.scratch import ScratchFolder
from cellmill.storage import Storage
from tests.platform.atlas.test_compacting import cells_of, make


def test_an_atlas_in_an_object_store_is_compacted_whatever_requests_are_lost(
    bucket: str, tmp_path: Path, flaky: Callable[..., str]
) -> None:
    local = make(tmp_path / "atlas")
    here, there = Storage.open(local.url), Storage.open(f"{bucket}/atlas")
    for key in here.list():
        there.put(key, here.get(key))
    flaky(0.05, seed=1)
    remote = Atlas.open(there.url)
    before = cells_of(remote.snapshot())
    for atlas in (local, remote):
        assert compact(atlas, shard_cells=40).changed
    assert [(one.digest, one.checksum) for one in remote.snapshot().shards] == [
        (one.digest, one.checksum) for one in local.snapshot().shards
    ]
    assert cells_of(remote.snapshot()) == before
    assert not compact(remote, shard_cells=40).changed
    assert remove(remote, "donor == 'alpha-1'", "consent").cells == {"alpha": 28}
    assert remote.verify().sound


def test_folders_that_a_killed_process_left_are_deleted_and_those_of_others_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left = tmp_path / "cellmill-scratch-left"
    left.mkdir()
    (left / "000000.data").write_bytes(b"cells")
    (tmp_path / "other").mkdir()
    first, second = ScratchFolder(), ScratchFolder()
    assert {path.name for path in tmp_path.iterdir()} == {first.path.name, second.path.name, "other"}
    for folder in (first, second):
        folder.delete()
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
