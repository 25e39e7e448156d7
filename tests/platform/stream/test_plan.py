"""The plan of an epoch: whatever the workers, windows and interruptions, every cell once and the same batches."""

from __future__ import annotations

import time
import tracemalloc
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellmill.errors import ConfigError
from cellmill.stream.layout import group_layout
from cellmill.stream.plan import EpochPlan, check_lanes, default_lanes
from cellmill.stream.runs import epoch_order

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Case:
    plan: EpochPlan
    world: int
    other_world: int
    group_cells: int
    stop: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    lanes = draw(st.sampled_from([1, 2, 3, 4, 6, 8, 16, 64]))
    counts = draw(st.lists(st.integers(1, 400), min_size=1, max_size=8))
    plan = EpochPlan(
        counts=np.array(counts, np.int64),
        lanes=lanes,
        share=draw(st.integers(1, 9)),
        window=draw(st.sampled_from([1, 7, 16, 64, 1024])),
        run=draw(st.sampled_from([1, 5, 32, 512])),
        seed=draw(st.integers(0, 1 << 40)),
        epoch=draw(st.integers(0, 50)),
    )
    worlds = st.integers(1, lanes)
    return Case(plan, draw(worlds), draw(worlds), draw(st.sampled_from([1, 50, 400, 16_384])), draw(st.integers(0, 40)))


def cells_of(plan: EpochPlan, shard: I64, begin: I64, length: I64) -> I64:
    """Return the cells of pieces as numbers over all shards."""
    first = np.cumsum(plan.counts) - plan.counts
    return np.concatenate(
        [np.arange(f, f + n) for f, n in zip(first[shard] + begin, length, strict=True)] or [np.zeros(0, np.int64)]
    )


def steps_of(plan: EpochPlan, rank: int, world: int, group_cells: int, taken: int) -> list[I64]:
    """Return a worker's cells of each step, as the stream puts them together."""
    parts: list[list[I64]] = [[] for _ in range(plan.steps(taken))]
    starts = []
    for group in plan.groups(rank, world, group_cells, taken):
        layout = group_layout(plan, group, taken)
        pieces = layout.pieces
        cells = cells_of(plan, pieces.shard, pieces.begin, pieces.length)[layout.cells]
        assert layout.last_step <= len(parts)
        # A group is needed from its first step on, and not before it is asked for.
        assert max(group.start - taken, 0) // plan.share <= layout.first_step
        starts.append(group.start)
        for i in range(layout.offset.size - 1):
            parts[layout.first_step + i].append(cells[layout.offset[i] : layout.offset[i + 1]])
    assert starts == sorted(starts)
    return [np.concatenate(part) if part else np.zeros(0, np.int64) for part in parts]


def global_batches(plan: EpochPlan, world: int, group_cells: int, taken: int = 0) -> list[set[int]]:
    ranks = [steps_of(plan, rank, world, group_cells, taken) for rank in range(world)]
    assert len({len(steps) for steps in ranks}) == 1
    batches = [np.concatenate(step) for step in zip(*ranks, strict=True)]
    found = [set(batch.tolist()) for batch in batches]
    assert [len(batch) for batch in found] == [batch.size for batch in batches]
    return found


@settings(max_examples=500, deadline=None)
@given(case=cases())
def test_every_cell_once_and_the_same_batches_whatever_the_workers(case: Case) -> None:
    plan = case.plan
    batches = global_batches(plan, case.world, case.group_cells)
    everything = [cell for batch in batches for cell in batch]
    assert sorted(everything) == list(range(plan.n_cells))
    assert len(batches) == plan.steps() == -(-plan.longest // plan.share)
    # Every batch but the last takes its share of each lane; lanes differ by one cell at most.
    full = plan.share * plan.lanes
    assert all(len(batch) == full for batch in batches[: plan.n_cells // full - 1])
    assert sum(len(batch) < full for batch in batches) <= 2
    # Other workers continue what these began, without replay.
    stop = min(case.stop, len(batches))
    rest = global_batches(plan, case.other_world, 1 + case.group_cells // 3, stop * plan.share)
    assert batches[:stop] + rest == batches


@settings(max_examples=60, deadline=None)
@given(case=cases(), taken=st.integers(0, 400))
def test_any_number_of_cells_taken_is_a_position(case: Case, taken: int) -> None:
    """Also one that is no multiple of the share, as after a change of the batch size."""
    plan = case.plan
    before = {cell for batch in global_batches(_with_share(plan, 1), 1, 400)[:taken] for cell in batch}
    after = {cell for batch in global_batches(plan, case.world, case.group_cells, taken) for cell in batch}
    assert before | after == set(range(plan.n_cells))
    assert not before & after


def _with_share(plan: EpochPlan, share: int) -> EpochPlan:
    return EpochPlan(plan.counts, plan.lanes, share, plan.window, plan.run, plan.seed, plan.epoch)


@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_the_order_within_a_step_does_not_depend_on_groups(case: Case) -> None:
    one = steps_of(case.plan, 0, case.world, case.group_cells, 0)
    other = steps_of(case.plan, 0, case.world, 1, 0)
    assert all((a == b).all() for a, b in zip(one, other, strict=True))


@settings(max_examples=100, deadline=None)
@given(counts=st.lists(st.integers(1, 3000), min_size=1, max_size=6), run=st.integers(1, 600), seed=st.integers(0, 99))
def test_runs_hold_every_cell_once_and_are_long(counts: list[int], run: int, seed: int) -> None:
    order = epoch_order(np.array(counts, np.int64), run=run, seed=seed, epoch=0)
    assert order.length.min() >= min(run, *counts)
    assert order.length.max() < 2 * max(run, 1)
    pieces = order.pieces(0, sum(counts))
    for shard, count in enumerate(counts):
        mine = pieces.shard == shard
        cells = [np.arange(b, b + n) for b, n in zip(pieces.begin[mine], pieces.length[mine], strict=True)]
        assert sorted(np.concatenate(cells).tolist()) == list(range(count))


def test_epochs_and_seeds_differ() -> None:
    plans = [
        EpochPlan(np.array([900, 500]), lanes=4, share=8, window=128, run=64, seed=seed, epoch=epoch)
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    first = [steps_of(plan, 0, 1, 1000, 0)[0].tolist() for plan in plans]
    assert first[0] != first[1] != first[2] != first[0]
    assert steps_of(plans[0], 0, 1, 1000, 0)[0].tolist() == first[0]


def test_a_small_data_set_with_a_small_batch() -> None:
    lanes = default_lanes(32, 1)
    plan = EpochPlan(np.array([1836]), lanes=lanes, share=32 // lanes, window=1024, run=512, seed=0, epoch=0)
    batches = global_batches(plan, 1, 16_384)
    assert [len(batch) for batch in batches] == [32] * 57 + [12]


def test_fewer_cells_than_lanes() -> None:
    plan = EpochPlan(np.array([3, 2]), lanes=16, share=2, window=1024, run=512, seed=0, epoch=0)
    for world in (1, 3, 16):
        assert global_batches(plan, world, 100) == [set(range(5))]
    assert plan.lengths.sum() == 5
    assert plan.lengths.max() == 1


def test_default_lanes() -> None:
    assert {default_lanes(256, workers) for workers in range(1, 65)} == {64}
    assert default_lanes(256, 65) == 128
    assert default_lanes(32, 1) == 32
    assert default_lanes(96, 6) == 48
    assert default_lanes(67, 1) == 1
    assert default_lanes(67, 2) == 67
    with pytest.raises(ConfigError, match="shared by 9 workers"):
        default_lanes(8, 9)
    with pytest.raises(ConfigError, match="not a multiple"):
        check_lanes(5, 32, 1)
    with pytest.raises(ConfigError, match="4 lanes cannot"):
        check_lanes(4, 32, 8)


def test_batches_are_mixed_although_each_donor_is_a_shard_of_its_own() -> None:
    """Entropy of donors in a global batch of 256, as a share of that of truly random batches."""
    donors = 40
    plan = EpochPlan(np.full(donors, 5000), lanes=64, share=4, window=1024, run=512, seed=3, epoch=0)
    batches = global_batches(plan, 1, 16_384)
    rng = np.random.default_rng(0)
    found = np.mean([_entropy(np.array(sorted(batch)) // 5000, donors) for batch in batches[:-1]])
    random = np.mean([_entropy(rng.integers(0, donors, 256), donors) for _ in batches])
    assert found / random > 0.99


def _entropy(codes: I64, n: int) -> float:
    share = np.bincount(codes, minlength=n) / codes.size
    share = share[share > 0]
    return float(-(share * np.log2(share)).sum())


def test_planning_a_billion_cells_is_quick_and_small() -> None:
    counts = np.full(5000, 200_000, np.int64)
    tracemalloc.start()
    began = time.process_time()
    plan = EpochPlan(counts, lanes=64, share=16, window=1024, run=512, seed=0, epoch=7)
    groups = plan.groups(3, 8, 16_384, taken=5_000_000)
    layout = group_layout(plan, next(groups), taken=5_000_000)
    seconds = time.process_time() - began
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert plan.n_cells == 10**9
    assert layout.cells.size > 0
    assert seconds < 30
    assert peak < 1 << 30
