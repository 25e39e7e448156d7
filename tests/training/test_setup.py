"""The snapshot of a training: given by number or tag, written down by number, kept on resuming."""

from pathlib import Path

import pytest

from cellmill.atlas import Atlas
from cellmill.atlas.tags import add_tag, delete_tag
from cellmill.errors import AtlasError
from cellmill.training.config import PretrainConfig
from cellmill.training.setup import pin_snapshot, select
from tests.platform.atlas.builders import add_shard, random_counts, small_atlas


def make(atlas: Atlas, output: Path, snapshot: int | str | None) -> PretrainConfig:
    return PretrainConfig(name="run", output=output, atlas=atlas.url, snapshot=snapshot, steps=1)


def test_a_tag_is_pinned_to_a_number_and_resuming_keeps_it(tmp_path: Path) -> None:
    atlas = small_atlas(tmp_path / "atlas")
    add_tag(atlas, "v1")
    atlas.commit([add_shard(atlas, "gamma", random_counts(5, 30, seed=3))])
    output = tmp_path / "run"
    assert pin_snapshot(make(atlas, output, None), resume=False).snapshot == 2
    pinned = pin_snapshot(make(atlas, output, "v1"), resume=False)
    assert pinned.snapshot == 1
    assert select(atlas, pinned.snapshot, "licence = 'MIT'", key="where").n_cells == 60
    output.mkdir()
    pinned.save(output / "config.yaml")
    delete_tag(atlas.storage, "v1")
    add_tag(atlas, "v1", 2)  # the tag was moved meanwhile
    assert pin_snapshot(make(atlas, output, "v1"), resume=True).snapshot == 1
    with pytest.raises(AtlasError, match="No snapshot is called"):
        pin_snapshot(make(atlas, output, "v2"), resume=False)
