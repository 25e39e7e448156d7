"""Every snapshot stays readable: after checkpoints of the log, after years, and quickly."""

import os
import time
from pathlib import Path

import pytest
from deltalake import DeltaTable

from cellmill.atlas import Atlas, ShardEntry, read
from tests.platform.atlas.builders import add_shard, random_counts
from tests.platform.atlas.test_atlas import row


def expected(version: int) -> list[str]:
    """Two shards come with each commit, and every fifth takes the oldest away."""
    gone = {f"{i:04d}" for i in range(version // 5)}
    return sorted({f"{i:04d}" for i in range(2 * version)} - gone)


def grow(atlas: Atlas, first: int, last: int) -> None:
    for i in range(first, last):
        remove = [("d", f"{(i + 1) // 5 - 1:04d}")] if (i + 1) % 5 == 0 else []
        atlas.commit([row(f"{2 * i:04d}"), row(f"{2 * i + 1:04d}")], remove)


def age(root: Path, days: int) -> None:
    """Make all files of the log look old, to the file system and to Delta, whose checkpoints stay."""
    then = time.time() - days * 86_400
    for path in (root / "catalog").rglob("*"):
        os.utime(path, (then, then))


def test_snapshots_outlive_checkpoints_and_years(tmp_path: Path) -> None:
    atlas = Atlas.create(tmp_path)
    cells = add_shard(atlas, "real", random_counts(8, 20, seed=1))
    grow(atlas, 0, 105)
    assert list((tmp_path / "catalog/_delta_log").glob("*.checkpoint.parquet"))
    age(tmp_path, 800)
    grow(atlas, 105, 108)
    age(tmp_path, 400)
    DeltaTable(str(tmp_path / "catalog")).create_checkpoint()
    grow(atlas, 108, 112)
    atlas.commit([cells], [entry.key for entry in atlas.snapshot().shards])
    atlas.commit([], [cells.key])
    fresh = Atlas.open(tmp_path)
    for version in range(113):
        found = [entry.digest for entry in fresh.snapshot(version).shards]
        assert found == expected(version), version
    assert [line.version for line in fresh.log()] == list(range(114, -1, -1))
    assert read(tmp_path, 113, "dataset = 'real'").n_obs == 8

    start = time.monotonic()
    for some in (None, 0, 57, 99, 110):
        Atlas.open(tmp_path).snapshot(some)
    assert time.monotonic() - start < 20
    assert len(list((tmp_path / "catalog").glob("*.parquet"))) < 120


def test_a_snapshot_is_read_from_few_files_however_many_commits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    atlas = Atlas.create(tmp_path)
    grow(atlas, 0, 80)
    fresh = Atlas.open(tmp_path)
    reads: list[str] = []
    get = type(fresh.storage).get

    def counted(self: object, key: str) -> bytes:
        reads.append(key)
        return get(self, key)  # type: ignore[arg-type]

    monkeypatch.setattr(type(fresh.storage), "get", counted)
    shards: tuple[ShardEntry, ...] = fresh.snapshot().shards
    assert [entry.digest for entry in shards] == expected(80)
    assert len([key for key in reads if key.endswith(".parquet")]) <= 64
