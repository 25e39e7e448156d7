"""Micro-batches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellmill.errors import ConfigError
from cellmill.stream import micro_batch_count, split_cells, straggler_ratio, waste


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 1200), max_size=70),
    capacity=st.integers(1200, 9000),
    room=st.integers(0, 30),
)
def test_no_part_exceeds_the_capacity_and_every_cell_is_in_one(lengths: list[int], capacity: int, room: int) -> None:
    tokens = np.array(lengths, np.int64)
    parts = split_cells(tokens, micro_batch_count(len(lengths) + room, 1200, capacity))
    assert sorted(cell for part in parts for cell in part.tolist()) == list(range(len(lengths)))
    assert all(tokens[part].sum() <= capacity for part in parts)
    assert all((np.diff(part) > 0).all() for part in parts)


def test_parts_are_balanced() -> None:
    tokens = np.random.default_rng(0).integers(300, 1201, 256)
    sums = [int(tokens[part].sum()) for part in split_cells(tokens, 8)]
    assert max(sums) / np.mean(sums) < 1.01


@given(cells=st.integers(0, 600), longest=st.integers(1, 1201), fit=st.integers(1, 120))
def test_cells_of_equal_length_are_shared_evenly_where_few_more_parts_can(cells: int, longest: int, fit: int) -> None:
    capacity = longest * fit + longest // 2
    parts = micro_batch_count(cells, longest, capacity)
    least = max(1, -(-cells // fit))
    assert least <= parts <= max(least, least * 3 // 2)
    tokens = [int(part.size) * longest for part in split_cells(np.full(cells, longest), parts)]
    assert max(tokens) <= capacity
    found = waste(np.array([tokens]))
    if found > 0.01:  # then no number that is allowed is better than 1 %
        assert parts == least
        for other in range(least, min(cells, least * 3 // 2) + 1):
            assert cells / (other * -(-cells // other)) < 0.99


def test_a_usual_batch_wastes_less_than_a_hundredth() -> None:
    assert micro_batch_count(256, 1201, 65_536) == 6
    assert micro_batch_count(32, 1201, 65_536) == 1
    assert micro_batch_count(512, 1201, 65_536) == 11


def test_fewer_cells_than_parts() -> None:
    assert [part.tolist() for part in split_cells(np.array([5, 3]), 4)] == [[0], [1], [], []]
    assert [part.size for part in split_cells(np.zeros(0, np.int64), 3)] == [0, 0, 0]


def test_a_cell_above_the_capacity_is_refused() -> None:
    with pytest.raises(ConfigError, match="token_capacity"):
        micro_batch_count(4, 1201, 1200)


@given(st.lists(st.lists(st.integers(0, 5000), min_size=3, max_size=3), min_size=1, max_size=20))
def test_waiting_is_what_a_clock_would_show(steps: list[list[int]]) -> None:
    clock = working = 0
    for workers in steps:
        clock += max(workers)
        working += sum(workers)
    tokens = np.array(steps, np.int64)
    assert waste(tokens) == pytest.approx(1 - working / (3 * clock) if clock else 0)
    assert straggler_ratio(tokens) == pytest.approx(clock / (working / 3) if working else 1)
    assert waste(tokens[:, :1]) == 0
