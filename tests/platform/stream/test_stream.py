"""The stream over a real atlas, in process."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cellmill.atlas import Atlas, read
from cellmill.errors import CheckpointError, ConfigError, IntegrityError
from cellmill.stream import Position, Stream, StreamConfig, cells
from cellmill.tokens import CellBlock, PackedBatch, TokenConfig, Tokeniser
from tests.platform.stream.conftest import SIZES, make_atlas

LABELS = {"kind": ("kind", ["A", "C"])}
TOKENS = TokenConfig(max_genes=12, prompt_ratios=(0.25, 0.5))


def stream(atlas: Atlas, *, where: str | None = None, rank: int = 0, world: int = 1, **changes: Any) -> Stream:
    config = StreamConfig.model_validate({"batch_size": 32, "lanes": 8, "group_cells": 100, "window": 64, **changes})
    selection = atlas.snapshot().select(where)
    return Stream(selection, Tokeniser(TOKENS), config, rank=rank, world_size=world, labels=LABELS)


def content(packed: PackedBatch) -> dict[int, tuple[Any, ...]]:
    """Return all that a batch says of each cell, by id."""
    found = {}
    for cell in range(packed.n_cells):
        part = slice(packed.cu_seqlens[cell], packed.cu_seqlens[cell + 1])
        found[int(packed.cell_id[cell])] = (
            packed.gene[part].tolist(),
            packed.value[part].tolist(),
            int(packed.n_pcpt[cell]),
            int(packed.labels["kind"][cell]),
        )
    assert len(found) == packed.n_cells
    return found


def equal(one: PackedBatch, other: PackedBatch) -> bool:
    names = ("gene", "value", "cu_seqlens", "n_pcpt", "cell_id")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names) and all(
        np.array_equal(one.labels[name], other.labels[name]) for name in one.labels
    )


def test_every_cell_once_with_its_own_tokens_and_label(stream_atlas: Atlas) -> None:
    batches = list(stream(stream_atlas).epoch(3))
    assert len(batches) == stream(stream_atlas).steps_per_epoch
    found = content(PackedBatch.concatenate(batches))
    adata = read(stream_atlas.url)
    assert set(found) == set(adata.obs["cell_id"].tolist())
    vocabulary = stream_atlas.vocabulary()
    tokens = vocabulary.lookup([str(name) for name in adata.var_names]).astype(np.uint32)
    order = np.argsort(tokens)
    block = CellBlock.from_csr(adata.X.tocsr()[:, order], tokens[order])
    block.cell_id[:] = adata.obs["cell_id"].to_numpy()
    block.labels["kind"] = adata.obs["kind"].map({"A": 0, "C": 1}).astype(float).fillna(-1).to_numpy().astype(np.int32)
    assert content(Tokeniser(TOKENS).tokenise(block, seed=0, epoch=3)) == found


def test_workers_share_the_same_global_batches(stream_atlas: Atlas) -> None:
    alone = [content(batch) for batch in stream(stream_atlas).epoch(0)]
    for world in (2, 3, 8):
        ranks = [list(stream(stream_atlas, rank=rank, world=world, group_cells=33).epoch(0)) for rank in range(world)]
        assert {len(batches) for batches in ranks} == {len(alone)}
        together = [
            {cell: what for batch in step for cell, what in content(batch).items()} for step in zip(*ranks, strict=True)
        ]
        assert together == alone
        most = stream(stream_atlas, world=world).cells_per_step
        assert max(batch.n_cells for batches in ranks for batch in batches) == most


@pytest.mark.parametrize("where", [None, "kind != 'B'"])
def test_columns_that_are_too_many_to_keep_are_read_run_by_run(
    stream_atlas: Atlas, monkeypatch: pytest.MonkeyPatch, where: str | None
) -> None:
    kept = list(stream(stream_atlas, where=where).epoch(0))
    monkeypatch.setattr(cells, "_COLUMN_BYTES", 1)
    read = list(stream(stream_atlas, where=where).epoch(0))
    assert len(kept) == len(read)
    assert all(equal(a, b) for a, b in zip(kept, read, strict=True))
    assert stream(stream_atlas, where=where).unlabelled["kind"] == sum(
        int((batch.labels["kind"] < 0).sum()) for batch in read
    )


@pytest.mark.parametrize("start", [1, 7, 28, 29])
def test_resuming_repeats_nothing_and_loses_nothing(stream_atlas: Atlas, start: int) -> None:
    whole = list(stream(stream_atlas).epoch(1))
    rest = list(stream(stream_atlas, group_cells=16_384, data_cpus=2).epoch(1, start))
    assert len(rest) == len(whole) - start
    assert all(equal(a, b) for a, b in zip(whole[start:], rest, strict=True))


def test_a_position_travels_as_json_and_fits_one_order_only(stream_atlas: Atlas) -> None:
    first = stream(stream_atlas)
    position = Position.model_validate_json(first.position(1, 5).model_dump_json())
    ahead = [content(batch) for batch in list(first.epoch(1))[5:]]
    assert [content(batch) for batch in first.resume(position)] == ahead
    # Another batch size: other batches, the same cells, none of them twice.
    larger = list(stream(stream_atlas, batch_size=64).resume(position))
    assert content(PackedBatch.concatenate(larger)).keys() == {cell for batch in ahead for cell in batch}
    for changes in ({"seed": 1}, {"lanes": 16}, {"window": 32}, {"where": "kind == 'A'"}):
        with pytest.raises(CheckpointError, match="another order"):
            stream(stream_atlas, **changes).resume(position)


def test_a_selection_streams_its_cells_only(stream_atlas: Atlas) -> None:
    chosen = stream(stream_atlas, where="kind != 'B' and dataset in ('one', 'three')")
    found = content(PackedBatch.concatenate(list(chosen.epoch(0))))
    table = stream_atlas.snapshot().cells(["cell_id", "kind"], "kind != 'B' and dataset in ('one', 'three')")
    kinds = dict(zip(table["cell_id"].to_pylist(), table["kind"].to_pylist(), strict=True))
    assert set(found) == set(kinds)
    assert all(what[3] == {"A": 0, "C": 1}[kinds[cell]] for cell, what in found.items())
    assert chosen.unlabelled == {"kind": 0}
    assert (
        stream(stream_atlas).unlabelled["kind"]
        == sum(SIZES.values()) - stream(stream_atlas, where="kind != 'B'").n_cells
    )


def test_more_workers_than_a_short_last_step_has_cells(tmp_path: Path, stream_atlas: Atlas) -> None:
    ranks = [
        list(stream(stream_atlas, where="dataset == 'three'", lanes=32, rank=r, world=32).epoch(0)) for r in range(32)
    ]
    assert {len(batches) for batches in ranks} == {3}
    assert sum(batch.n_cells for batches in ranks for batch in batches) == 77
    assert min(batches[-1].n_cells for batches in ranks) == 0


def test_micro_batches_hold_every_cell_of_the_step(stream_atlas: Atlas) -> None:
    source = stream(stream_atlas)
    packed = next(source.epoch(0))
    parts = source.micro_batches(packed, 5, 150)
    assert len(parts) == 5
    assert content(PackedBatch.concatenate(parts)) == content(packed)
    two = packed.part(0, 2)
    assert len(source.micro_batches(two, 5, 150)) == 5


@pytest.mark.parametrize("where", [None, "kind == 'A'", "kind == 'A' and n_genes < 9"])
@pytest.mark.parametrize("zeros", ["none", "all"])
def test_the_capacity_must_hold_the_longest_cell_there_is(
    stream_atlas: Atlas, where: str | None, zeros: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokeniser = Tokeniser(TokenConfig.model_validate({"max_genes": 100_000, "include_zero": zeros}))
    selection = stream_atlas.snapshot().select(where)
    source = Stream(selection, tokeniser, StreamConfig(batch_size=1))
    longest = max(batch.n_tokens for batch in source.epoch(0))
    source.check_capacity(longest)
    with pytest.raises(ConfigError, match=f"can have {longest} tokens"):
        source.check_capacity(longest - 1)
    # What the catalog tells is enough where cells are short by the configuration, or by all that is there.
    monkeypatch.setattr(selection, "most_features", None)
    source.check_capacity(100)
    Stream(selection, Tokeniser(TokenConfig(max_genes=4)), StreamConfig(batch_size=1)).check_capacity(5)


def test_zeros_follow_what_each_data_set_measured(stream_atlas: Atlas) -> None:
    config = StreamConfig(batch_size=64, lanes=8)
    panel = np.arange(8, 8 + 100, dtype=np.uint32)
    tokeniser = Tokeniser(TokenConfig(include_zero="panel", value="midrank"), panel)
    for batch in Stream(stream_atlas.snapshot().select(), tokeniser, config).epoch(0):
        assert set(batch.lengths.tolist()) == {61}


def test_a_deleted_or_damaged_shard_ends_the_stream(tmp_path: Path) -> None:
    atlas = make_atlas(tmp_path / "atlas")
    selection = atlas.snapshot().select()
    entry = selection.shards[0]
    source = Stream(selection, Tokeniser(TOKENS), StreamConfig(batch_size=32, lanes=8, group_cells=200))
    data = atlas.storage.local_path(f"{entry.shard_path}/X/data/c/0")
    good = data.read_bytes()
    data.write_bytes(good[: len(good) // 2] + bytes([good[len(good) // 2] ^ 0x40]) + good[len(good) // 2 + 1 :])
    with pytest.raises(IntegrityError, match=r"(?s)cannot be read.*" + entry.digest):
        list(source.epoch(0))
    shutil.rmtree(atlas.storage.local_path(entry.shard_path))
    with pytest.raises(IntegrityError, match=entry.digest):
        list(source.epoch(0))


def test_what_does_not_fit_is_refused(stream_atlas: Atlas) -> None:
    with pytest.raises(ConfigError, match="No cell is selected"):
        stream(stream_atlas, where="kind == 'nothing'")
    with pytest.raises(ConfigError, match="multiple of 5 lanes"):
        stream(stream_atlas, lanes=5)
    with pytest.raises(ConfigError, match="8 lanes cannot be shared by 9 workers"):
        stream(stream_atlas, world=9)
    for rank, world in ((5, 2), (2, 2), (-1, 2), (0, 0)):
        with pytest.raises(ConfigError, match=f"no worker {rank} of {world}"):
            stream(stream_atlas, rank=rank, world=world)
    with pytest.raises(ConfigError, match="knid"):
        Stream(stream_atlas.snapshot().select(), Tokeniser(TOKENS), StreamConfig(), labels={"kind": ("knid", ["A"])})


def test_leaving_an_epoch_early_stops_the_threads(stream_atlas: Atlas) -> None:
    import threading

    batches = stream(stream_atlas).epoch(0)
    next(batches)
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("cellmill-stream")]
