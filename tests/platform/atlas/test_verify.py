from pathlib import Path

import numpy as np
import pytest

from cellmill.atlas import Atlas
from cellmill.atlas.forgotten import Forgotten, mark
from cellmill.atlas.tags import add_tag
from cellmill.atlas.withdrawals import record_withdrawal
from cellmill.atlas.withdrawing import remove
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


def test_records_are_verified_and_a_withdrawal_that_was_cut_off_is_found(tmp_path: Path) -> None:
    atlas = small_atlas(tmp_path)
    add_tag(atlas, "v1")
    mark(atlas.storage, [Forgotten(version=0, time="2026-01-01T00:00:00Z", reason="old")])
    record_withdrawal(atlas.storage, "donor = 'd1'", "consent")  # and killed before its commit
    (damage,) = atlas.verify().damage
    assert "Withdrawal 1 was written down, but 20 cells" in damage.what
    assert remove(atlas, "donor = 'd1'", "consent").number == 1
    assert atlas.verify().sound
    assert atlas.verify(1).sound  # an old snapshot may hold them
    for path in (
        tmp_path / "tags/v1.json",
        tmp_path / "forgotten/000000000000.json",
        tmp_path / "withdrawals/0001.json",
    ):
        content = path.read_bytes()
        path.write_bytes(content.replace(b"2", b"3", 1))
        assert [Path(damage.where) for damage in atlas.verify().damage] == [path]
        path.write_bytes(content)
    mark(atlas.storage, [Forgotten(version=1, time="2026-01-01T00:00:00Z", reason="old")])
    assert "The tag 'v1' is of snapshot 1, which is not there." in atlas.verify().damage[0].what


def test_what_is_lost_or_flipped_of_withdrawals_is_found(tmp_path: Path) -> None:
    atlas = small_atlas(tmp_path)
    first = remove(atlas, "n_counts >= 0 and donor = 'd1'", "consent")
    second = remove(atlas, "n_counts >= 0", "consent")
    (record, *_) = sorted((tmp_path / "withdrawn").rglob("*.json"))
    content = record.read_bytes()
    for at in range(len(content)):
        record.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        assert not atlas.verify().sound, at
    record.write_bytes(content)
    assert atlas.verify().sound
    for number in (first.number, second.number):
        path = tmp_path / f"withdrawals/{number:04d}.json"
        content = path.read_bytes()
        path.unlink()
        assert f"Withdrawal {number} was made, and what it withdraws is lost" in atlas.verify().damage[0].what
        path.write_bytes(content)
