from pathlib import Path

import numpy as np
import pytest

from cellmill.atlas import Atlas
from cellmill.errors import IntegrityError
from tests.platform.atlas.builders import add_shard, random_counts, small_atlas


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    atlas = Atlas.create(tmp_path)
    atlas.commit([add_shard(atlas, "data", random_counts(12, 10))])
    assert atlas.verify().sound
    files = [path for folder in ("shards", "cells") for path in (tmp_path / folder).rglob("*") if path.is_file()]
    rng = np.random.default_rng(0)
    for _ in range(40):
        path = files[rng.integers(len(files))]
        content = bytearray(path.read_bytes())
        content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        original = path.read_bytes()
        path.write_bytes(bytes(content))
        found = atlas.verify()
        assert not found.sound, path
        assert "data" in found.damage[0].where
        path.write_bytes(original)
    assert atlas.verify().sound


def test_missing_added_and_foreign_files_are_found(tmp_path: Path) -> None:
    atlas = small_atlas(tmp_path)
    entry = atlas.snapshot().shards[0]
    shard = tmp_path / entry.shard_path
    (shard / "stray").write_bytes(b"x")
    assert not atlas.verify().sound
    (shard / "stray").unlink()
    (tmp_path / entry.cells_path).unlink()
    found = atlas.verify()
    with pytest.raises(IntegrityError) as caught:
        found.check()
    assert entry.cells_path in caught.value.where
    assert atlas.verify(0).sound


def test_a_changed_vocabulary_is_found(tmp_path: Path) -> None:
    atlas = small_atlas(tmp_path)
    (tmp_path / "vocabulary/001.parquet").unlink()
    found = Atlas.open(tmp_path).verify()
    assert [Path(damage.where).name for damage in found.damage] == ["vocabulary"]
    assert atlas.snapshot().n_cells == 100
