"""Tags, rollback, and the log."""

from pathlib import Path

import pytest

from cellmill.atlas import Atlas, read
from cellmill.atlas.forgotten import Forgotten, mark
from cellmill.atlas.rollback import rollback
from cellmill.atlas.tags import add_tag, all_tags, delete_tag
from cellmill.errors import AtlasError, ConfigError, IntegrityError
from tests.platform.atlas.builders import add_shard, random_counts, small_atlas
from tests.platform.atlas.test_atlas import row


def test_a_tag_names_a_snapshot_everywhere(tmp_path: Path) -> None:
    atlas = small_atlas(tmp_path)
    add_tag(atlas, "v1", message="first release")
    atlas.commit([add_shard(atlas, "gamma", random_counts(5, 30, seed=3))])
    assert atlas.snapshot("v1").version == 1
    assert atlas.snapshot("2").version == 2
    assert read(tmp_path, "v1").n_obs == 100
    assert atlas.verify("v1").version == 1
    assert {line.version: line.tags for line in atlas.log()} == {2: (), 1: ("v1",), 0: ()}
    assert add_tag(atlas, "v1", 1) == all_tags(atlas.storage)[0]  # given again, nothing changes
    with pytest.raises(AtlasError, match="Snapshot 1 is called 'v1' already"):
        add_tag(atlas, "v1", 2)
    with pytest.raises(AtlasError, match="No snapshot is called") as caught:
        atlas.snapshot("v2")
    assert "v1" in caught.value.fix
    for name in ("1", "", "a/b", "../x", "a" * 200):
        with pytest.raises(ConfigError, match="cannot be a tag"):
            add_tag(atlas, name)
    assert delete_tag(atlas.storage, "v1").version == 1
    add_tag(atlas, "v1", 2)
    assert atlas.snapshot("v1").version == 2


def test_a_damaged_tag_is_found(tmp_path: Path) -> None:
    atlas = small_atlas(tmp_path)
    add_tag(atlas, "v1")
    path = tmp_path / "tags/v1.json"
    path.write_text(path.read_text().replace('"version": 1', '"version": 0'))
    with pytest.raises(IntegrityError, match="checksum"):
        atlas.snapshot("v1")


def test_a_rollback_is_a_new_snapshot_and_nothing_is_lost(tmp_path: Path) -> None:
    atlas = Atlas.create(tmp_path)
    atlas.commit([row("a"), row("b")])
    atlas.commit([row("a", n_cells=5), row("c")], remove=[("d", "b")])
    assert rollback(atlas, 1) == (3, True)
    assert atlas.snapshot(3).shards == atlas.snapshot(1).shards
    assert [entry.digest for entry in atlas.snapshot(2).shards] == ["a", "c"]
    assert rollback(atlas, 1) == (3, False)
    assert atlas.log()[0].facts["rollback"] == "1"
    assert rollback(atlas, 2) == (4, True)
    assert rollback(atlas, 0) == (5, True)
    assert atlas.snapshot().shards == ()


def test_a_forgotten_snapshot_says_so(tmp_path: Path) -> None:
    atlas = small_atlas(tmp_path)
    mark(atlas.storage, [Forgotten(version=0, time="2026-01-01T00:00:00Z", reason="older than the last 1")])
    for attempt in (lambda: atlas.snapshot(0), lambda: rollback(atlas, 0), lambda: add_tag(atlas, "old", 0)):
        with pytest.raises(AtlasError, match="forgotten at 2026-01-01T00:00:00Z: older than the last 1"):
            attempt()
    assert [line.forgotten for line in atlas.log()] == [False, True]
    assert all_tags(atlas.storage) == []
