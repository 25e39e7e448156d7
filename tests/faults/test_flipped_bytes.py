"""Flipped bytes: a small draw of what `make soak` does."""

from pathlib import Path

from cellmill.atlas import Atlas
from cellmill.atlas.collecting import Forget, collect
from tests.faults.flipping import flip, rich_atlas


def test_every_flipped_byte_of_what_a_snapshot_needs_is_found(tmp_path: Path) -> None:
    atlas = rich_atlas(tmp_path)
    collect(Atlas.open(atlas), Forget(), grace_s=0)
    done, unnoticed = flip(atlas, 60, seed=0)
    assert not unnoticed
    assert {"atlas marker", "delta commit", "catalog file", "shard counts", "shard description", "cells"} <= set(done)
    assert {"overlay", "hash run", "vocabulary segment", "tags", "withdrawal"} <= set(done)
