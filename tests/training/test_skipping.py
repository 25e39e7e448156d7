"""Cells that training went without, counted over ranks."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from cellmill.atlas import Atlas
from cellmill.stream import Stream, StreamConfig
from cellmill.tokens import TokenConfig, Tokeniser
from cellmill.training.skipping import skipped_by_all
from tests.platform.stream.conftest import SIZES, make_atlas
from tests.training.spread import run_ranks


def _rank(rank: int, url: str, lost: str) -> None:
    config = StreamConfig(batch_size=32, lanes=8, group_cells=100, window=64, on_corrupt="skip")
    source = Stream(
        Atlas.open(url).snapshot().select(), Tokeniser(TokenConfig(max_genes=12)), config, rank=rank, world_size=2
    )
    batches = list(source.epoch(0))
    steps = torch.tensor([len(batches), -len(batches)])
    torch.distributed.all_reduce(steps, op=torch.distributed.ReduceOp.MAX)
    assert steps.tolist() == [source.steps_per_epoch, -source.steps_per_epoch]
    assert 0 < source.skipped[lost] < SIZES["two"]
    assert set(source.skipped) == {lost}
    # Every rank is told of all, what was lost before an interruption included.
    told = skipped_by_all(source, {lost: 7}, torch.device("cpu"))
    assert told == {lost: SIZES["two"] + 7}


def test_two_ranks_take_the_same_steps_and_know_of_all_that_was_lost(tmp_path: Path) -> None:
    atlas = make_atlas(tmp_path / "atlas")
    (entry,) = (entry for entry in atlas.snapshot().shards if entry.dataset == "two")
    shutil.rmtree(atlas.storage.local_path(entry.shard_path))
    run_ranks(_rank, 2, atlas.url, f"{entry.dataset}/{entry.digest}")
