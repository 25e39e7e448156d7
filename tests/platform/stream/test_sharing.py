"""How steps are shared: what is told of several workers is what they would get."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from cellmill.atlas import Atlas
from cellmill.stream import Stream, StreamConfig, straggler_ratio, unused
from cellmill.stream.layout import group_layout
from cellmill.stream.sharing import places_of_step, shared
from cellmill.tokens import TokenConfig, Tokeniser
from tests.platform.stream.test_plan import Case, cases

TOKENS = Tokeniser(TokenConfig(max_genes=24))


@settings(max_examples=150, deadline=None)
@given(case=cases())
def test_the_lane_of_each_cell_of_a_step(case: Case) -> None:
    plan = case.plan
    lanes: list[list[int]] = [[] for _ in range(plan.steps())]
    # One lane a worker, one window a group: whose cells a group holds is then its only place.
    for group in plan.groups(0, 1, 1):
        layout = group_layout(plan, group)
        (place,) = group.places.tolist()
        for i, n in enumerate(np.diff(layout.offset).tolist()):
            lanes[layout.first_step + i] += [place] * n
    assert [places_of_step(plan, step * plan.share).tolist() for step in range(plan.steps())] == lanes


def stream(atlas: Atlas, rank: int, world: int, **changes: Any) -> Stream:
    config = StreamConfig.model_validate({"batch_size": 64, "lanes": 16, "window": 32, "group_cells": 200, **changes})
    return Stream(atlas.snapshot().select(), TOKENS, config, rank=rank, world_size=world)


@pytest.mark.parametrize(
    "changes", [{}, {"sampling": {"kind": "sets", "by": ["kind"], "size": 4}, "batch_size": 128, "lanes": 8}]
)
@pytest.mark.parametrize("world", [1, 3, 8])
def test_it_is_what_the_workers_get(stream_atlas: Atlas, world: int, changes: dict[str, Any]) -> None:
    alone = stream(stream_atlas, 0, 1, **changes)
    steps, passes = [], []
    capacity = 250
    for epoch in (0, 1):
        ranks = [stream(stream_atlas, rank, world, **changes) for rank in range(world)]
        for batches in zip(*(rank.epoch(epoch) for rank in ranks), strict=True):
            steps.append([batch.n_tokens for batch in batches])
            pairs = list(zip(ranks, batches, strict=True))
            parts = max(rank.micro_batch_count(batch, capacity) for rank, batch in pairs)
            cut = [[part.n_tokens for part in rank.micro_batches(batch, parts, capacity)] for rank, batch in pairs]
            passes.append(np.array(cut))
            assert passes[-1].shape == (world, parts)
            assert passes[-1].max() <= capacity
    lengths = [batch.lengths for batch in chain(alone.epoch(0), alone.epoch(1))]
    found = shared(alone, world, lengths, capacity=capacity)
    assert found.workers == world
    assert found.micro_batches == pytest.approx(np.mean([step.shape[1] for step in passes]))
    assert found.straggler_ratio == pytest.approx(straggler_ratio(np.array(steps)))
    assert found.waste == pytest.approx(unused(passes))
