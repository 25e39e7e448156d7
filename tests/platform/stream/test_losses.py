"""Damaged and missing shards under a stream that is told to go on."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cellmill.atlas import Atlas, ShardEntry
from cellmill.errors import IntegrityError
from cellmill.stream import Stream, StreamConfig
from cellmill.tokens import PackedBatch, Tokeniser
from tests.platform.stream.conftest import SIZES, make_atlas
from tests.platform.stream.test_stream import LABELS, TOKENS, content, equal


def stream(atlas: Atlas, *, rank: int = 0, world: int = 1, **changes: Any) -> Stream:
    options: dict[str, Any] = {"batch_size": 32, "lanes": 8, "group_cells": 100, "window": 64, "on_corrupt": "skip"}
    config = StreamConfig.model_validate({**options, **changes})
    selection = atlas.snapshot().select()
    return Stream(selection, Tokeniser(TOKENS), config, rank=rank, world_size=world, labels=LABELS)


def flip(path: Path) -> None:
    good = bytearray(path.read_bytes())
    good[len(good) // 2] ^= 0x40
    path.write_bytes(good)


def damage(atlas: Atlas) -> tuple[ShardEntry, ShardEntry]:
    """Flip a bit of one shard's counts, and delete another shard."""
    one, _, two = sorted(atlas.snapshot().shards, key=lambda entry: entry.dataset)
    flip(atlas.storage.local_path(f"{one.shard_path}/X/data/c/0"))
    shutil.rmtree(atlas.storage.local_path(two.shard_path))
    assert (one.dataset, two.dataset) == ("one", "two")
    return one, two


def name(entry: ShardEntry) -> str:
    return f"{entry.dataset}/{entry.digest}"


def test_sound_cells_come_as_they_would_and_lost_ones_are_counted(
    tmp_path: Path, stream_atlas: Atlas, caplog: pytest.LogCaptureFixture
) -> None:
    atlas = make_atlas(tmp_path / "atlas")
    table = atlas.snapshot().cells(["cell_id"], "dataset == 'three'")
    sound = set(table["cell_id"].to_pylist())
    whole = [content(batch) for batch in stream(atlas).epoch(1)]
    one, two = damage(atlas)
    with caplog.at_level(logging.WARNING, "cellmill.stream"):
        source = stream(atlas)
        found = [content(batch) for batch in source.epoch(1)]
        again = [content(batch) for batch in source.epoch(1)]
    assert found == again == [{cell: what for cell, what in batch.items() if cell in sound} for batch in whole]
    assert source.skipped == {name(one): 2 * SIZES["one"], name(two): 2 * SIZES["two"]}
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert {name(entry) for entry in (one, two) if any(name(entry) in line for line in told)} == {name(one), name(two)}


def test_every_rank_takes_the_planned_steps_and_counts_its_own(tmp_path: Path) -> None:
    atlas = make_atlas(tmp_path / "atlas")
    one, two = damage(atlas)
    steps = stream(atlas).steps_per_epoch
    alone = [content(batch) for batch in stream(atlas).epoch(0)]
    sources = [stream(atlas, rank=rank, world=3, group_cells=40) for rank in range(3)]
    ranks = [list(source.epoch(0)) for source in sources]
    assert {len(batches) for batches in ranks} == {steps} == {len(alone)}
    for expected, parts in zip(alone, zip(*ranks, strict=True), strict=True):
        assert content(PackedBatch.concatenate(list(parts))) == expected
    for entry in (one, two):
        assert sum(source.skipped.get(name(entry), 0) for source in sources) == entry.n_cells
    # Resumed at a step, it counts what is left; a run that ends early counts only the steps it took.
    first, rest = stream(atlas), stream(atlas)
    batches = first.epoch(0)
    taken = [content(next(batches)) for _ in range(11)]
    batches.close()
    assert [*taken, *(content(batch) for batch in rest.resume(first.position(0, 11)))] == alone
    for entry in (one, two):
        assert first.skipped[name(entry)] + rest.skipped[name(entry)] == entry.n_cells


def test_an_atlas_of_damaged_shards_gives_empty_batches(tmp_path: Path) -> None:
    atlas = make_atlas(tmp_path / "atlas")
    shutil.rmtree(atlas.storage.local_path("shards"))
    source = stream(atlas)
    batches = list(source.epoch(0))
    assert len(batches) == source.steps_per_epoch
    assert sum(batch.n_cells for batch in batches) == 0
    assert sum(source.skipped.values()) == source.n_cells


def test_sets_are_lost_as_wholes(tmp_path: Path) -> None:
    atlas = make_atlas(tmp_path / "atlas")
    sampling = {"kind": "sets", "by": ["dataset", "kind"], "size": 4}
    whole = [batch.cell_id for batch in stream(atlas, sampling=sampling).epoch(0)]
    one, two = damage(atlas)
    source = stream(atlas, sampling=sampling)
    found = list(source.epoch(0))
    table = atlas.snapshot().cells(["cell_id"], "dataset == 'three'")
    sound = table["cell_id"].to_numpy()
    for before, after in zip(whole, found, strict=True):
        assert np.array_equal(before[np.isin(before, sound)], after.cell_id)
        assert np.array_equal(after.labels["set"], np.arange(after.n_cells) // 4)
    assert set(source.skipped) == {name(one), name(two)}


def test_by_default_the_stream_stops_and_names_the_shard(tmp_path: Path) -> None:
    for broken in range(2):
        atlas = make_atlas(tmp_path / f"atlas{broken}")
        entry = atlas.snapshot().shards[broken]
        if broken:
            shutil.rmtree(atlas.storage.local_path(entry.shard_path))
        else:
            flip(atlas.storage.local_path(f"{entry.shard_path}/X/indices/c/0"))
        with pytest.raises(IntegrityError) as caught:
            list(stream(atlas, on_corrupt="stop").epoch(0))
        assert entry.digest in caught.value.where
        assert "checksum" in caught.value.what or broken


def test_ray_data_loses_the_same_cells(tmp_path: Path, ray_cluster: None) -> None:
    atlas = make_atlas(tmp_path / "atlas")
    damage(atlas)
    here = stream(atlas)
    expected = list(here.epoch(0))
    there = stream(atlas, backend="ray", group_cells=256, data_cpus=2)
    found = list(there.epoch(0))
    assert len(found) == len(expected)
    assert all(equal(one, other) for one, other in zip(expected, found, strict=True))
    assert there.skipped == here.skipped != {}
