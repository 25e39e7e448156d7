"""Raw counts that are read straight to the places that their steps have for them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellmill.atlas import Atlas
from cellmill.memory import Memory
from cellmill.stream import Stream, StreamConfig
from cellmill.stream.rooms import StepRooms
from cellmill.tokens import PackedBatch, RawCounts
from cellmill.tokens.packed import adjoining
from tests.platform.stream.conftest import SIZES, make_atlas
from tests.platform.stream.test_losses import damage, name
from tests.platform.stream.test_stream import LABELS, content, equal

U8, U16 = np.dtype(np.uint8), np.dtype(np.uint16)


def stream(atlas: Atlas, tokeniser: RawCounts, *, rank: int = 0, world: int = 1, **changes: Any) -> Stream:
    config = StreamConfig.model_validate({"batch_size": 32, "lanes": 8, "group_cells": 100, "window": 64, **changes})
    return Stream(atlas.snapshot().select(), tokeniser, config, rank=rank, world_size=world, labels=LABELS)


def by_group(source: Stream, epoch: int) -> list[PackedBatch]:
    """Return the batches of an epoch, each put together from groups that were read to blocks of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cellmill.stream.group.GroupWork.make_in", lambda self, _, *rest: self.make(*rest))
        return list(source.epoch(epoch))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"data_cpus": 3, "prefetch": 4, "group_cells": 40},
        {"group_cells": 16_384},
        {"sampling": {"kind": "balanced", "by": "kind"}},
        {"sampling": {"kind": "sets", "by": ["kind"], "size": 4}},
    ],
)
def test_batches_are_what_they_were_copied_from(stream_atlas: Atlas, changes: dict[str, Any]) -> None:
    for world in (1, 3):
        for rank in range(world):
            source = stream(stream_atlas, RawCounts(), rank=rank, world=world, **changes)
            placed, copied = list(source.epoch(1)), by_group(source, 1)
            assert len(placed) == len(copied)
            assert all(equal(one, other) for one, other in zip(placed, copied, strict=True))


def test_lost_cells_leave_no_holes(stream_atlas: Atlas, tmp_path: Path) -> None:
    atlas = make_atlas(tmp_path / "atlas")
    whole = [content(batch) for batch in stream(atlas, RawCounts()).epoch(0)]
    sound = set(atlas.snapshot().cells(["cell_id"], "dataset == 'three'")["cell_id"].to_pylist())
    one, two = damage(atlas)
    source = stream(atlas, RawCounts(), on_corrupt="skip")
    found = [content(batch) for batch in source.epoch(0)]
    assert found == [{cell: what for cell, what in batch.items() if cell in sound} for batch in whole]
    assert source.skipped == {name(one): SIZES["one"], name(two): SIZES["two"]}


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_no_two_cells_share_a_place(data: st.DataObject) -> None:
    """Groups in any order, of any types; whoever holds a step's parts finds what was written, in one piece or more."""
    rooms = StepRooms(Memory(), cells=6)
    n = data.draw(st.integers(1, 6))
    steps: dict[int, list[tuple[Any, Any, list[int]]]] = {}
    first_step = 0
    mark = 0
    for turn in data.draw(st.permutations(range(n))):
        first_step += data.draw(st.integers(0, 2)) if turn == 0 else 0
        cells = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=4).filter(any))
        bounds = np.concatenate([[0], np.cumsum(cells)]).astype(np.int64)
        lengths = np.array(data.draw(st.lists(st.integers(0, 9), min_size=sum(cells), max_size=sum(cells))), np.int64)
        types = (U16, U8 if data.draw(st.booleans()) else U16)
        given_ = rooms.reserve(turn, first_step, bounds, lengths, types)
        for i, (a, b) in enumerate(pairwise(bounds.tolist())):
            numbers = [mark + j for j in range(int(lengths[a:b].sum()))]
            mark += len(numbers)
            given_.tokens[i][:] = numbers
            given_.counts[i][:] = [number % 251 for number in numbers]
            steps.setdefault(first_step + i, []).append((given_.tokens[i], given_.counts[i], numbers))
            begin = np.cumsum(lengths[a:b]) - lengths[a:b]
            address = given_.tokens[i].__array_interface__["data"][0]
            assert (given_.to_tokens.to[a:b] == address + 2 * begin).all()
    for parts in steps.values():
        for token, count, numbers in parts:
            assert token.tolist() == numbers
            assert count.tolist() == [number % 251 for number in numbers]


def test_groups_in_turn_fill_a_step_without_a_gap() -> None:
    rooms = StepRooms(Memory(), cells=64)
    lengths = np.random.default_rng(0).integers(900, 1100, (4, 16 * 5))
    given_ = [rooms.reserve(i, 0, np.arange(0, 81, 16), some, (U16, U8)) for i, some in enumerate(lengths)]
    for step in range(5):
        whole = adjoining([part.tokens[step] for part in given_])
        assert whole is not None
        assert whole.size == lengths[:, 16 * step : 16 * step + 16].sum()
        assert adjoining([part.tokens[step] for part in given_[::-1]]) is None
