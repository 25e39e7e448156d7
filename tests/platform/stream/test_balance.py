"""Micro-batches."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from cellmill.errors import ConfigError
from cellmill.stream import micro_batch_count, split_cells, straggler_ratio, unused, waste


@settings(max_examples=200, deadline=None)
@given(
    ranks=st.lists(st.lists(st.integers(1, 1200), max_size=70), min_size=1, max_size=4),
    capacity=st.integers(1200, 9000),
)
def test_no_part_exceeds_the_capacity_and_every_cell_is_in_one(ranks: list[list[int]], capacity: int) -> None:
    lengths = [np.array(rank, np.int64) for rank in ranks]
    agreed = max(micro_batch_count(rank, capacity) for rank in lengths)
    for tokens in lengths:
        parts = split_cells(tokens, agreed, capacity)
        assert len(parts) == agreed
        assert sorted(cell for part in parts for cell in part.tolist()) == list(range(tokens.size))
        assert all(tokens[part].sum() <= capacity for part in parts)
        assert all((np.diff(part) > 0).all() for part in parts)


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=5), capacity=st.integers(30, 60))
def test_few_cells_are_cut_into_hardly_more_parts_than_any_way_needs(lengths: list[int], capacity: int) -> None:
    least = next(
        parts
        for parts in range(1, len(lengths) + 1)
        if any(np.bincount(way, lengths, parts).max() <= capacity for way in product(range(parts), repeat=len(lengths)))
    )
    found = micro_batch_count(np.array(lengths), capacity)
    # The parts are within a third of the best, and up to half as many again may be more even.
    assert least <= found <= (4 * least / 3 + 1) * 3 / 2


LENGTHS = {
    "log-normal": lambda rng, n: np.exp(rng.normal(7, 0.5, n)),
    "few genes": lambda rng, n: np.exp(rng.normal(5.5, 0.6, n)),
    "power law": lambda rng, n: 200 * (1 + rng.pareto(1.2, n)),
}


@pytest.mark.parametrize("kind", LENGTHS)
@pytest.mark.parametrize("capacity", [65_536, 32_768, 16_384, 8192])
@pytest.mark.parametrize("workers", [1, 2])
def test_batches_as_they_are_waste_less_than_a_hundredth_and_fill_their_passes(
    kind: str, capacity: int, workers: int
) -> None:
    rng = np.random.default_rng(0)
    steps, used = [], 0
    for _ in range(20):
        lengths = 1 + np.minimum(1200, LENGTHS[kind](rng, 256)).astype(np.int64).reshape(workers, -1)
        parts = max(micro_batch_count(own, capacity) for own in lengths)
        cut = [[int(own[part].sum()) for part in split_cells(own, parts, capacity)] for own in lengths]
        steps.append(np.array(cut, np.int64))
        assert steps[-1].max() <= capacity
        used += workers * max(1, -(-int(lengths.sum(axis=1).max()) // capacity))
    assert unused(steps) < 0.01
    assert sum(step.size for step in steps) <= 1.1 * used  # of the passes that the tokens alone need


@given(cells=st.integers(1, 600), length=st.integers(1, 1201), fit=st.integers(1, 120))
def test_cells_of_equal_length_are_shared_evenly_where_few_more_parts_can(cells: int, length: int, fit: int) -> None:
    capacity = length * fit + length // 2
    lengths = np.full(cells, length)
    parts = micro_batch_count(lengths, capacity)
    least = -(-cells // fit)
    assert least <= parts <= max(least, least * 3 // 2)
    tokens = [int(part.size) * length for part in split_cells(lengths, parts, capacity)]
    found = waste(np.array([tokens]))
    if found > 0.01:  # then no number that is allowed is better than 1 %
        assert parts == least
        for other in range(least, least * 3 // 2 + 1):
            assert cells / (other * -(-cells // other)) < 0.99


@pytest.mark.parametrize("seed", range(6))
def test_the_cut_is_hardly_worse_than_the_best_there_is(seed: int) -> None:
    lengths = 1 + np.minimum(1200, np.exp(np.random.default_rng(seed).normal(7, 0.4, 14))).astype(np.int64)
    parts = 3
    # The best is found by integer programming: which cell is in which part, and a bound on the tokens of every part.
    n = lengths.size
    once = np.hstack([np.kron(np.eye(n), np.ones(parts)), np.zeros((n, 1))])
    full = np.hstack([np.kron(lengths, np.eye(parts)), -np.ones((parts, 1))])
    best = milp(
        np.eye(n * parts + 1)[-1],
        constraints=[LinearConstraint(once, 1, 1), LinearConstraint(full, -np.inf, 0)],
        integrality=np.r_[np.ones(n * parts), 0],
        bounds=Bounds(0, np.r_[np.ones(n * parts), np.inf]),
        options={"mip_rel_gap": 0.001},
    )
    found = max(int(lengths[part].sum()) for part in split_cells(lengths, parts, 20_000))
    assert best.fun * 0.998 <= found <= best.fun * 1.01


@given(lengths=st.lists(st.integers(1, 1201), min_size=1, max_size=40), parts=st.integers(1, 8))
def test_no_cell_could_be_moved_or_changed_for_another_to_make_the_fullest_part_lighter(
    lengths: list[int], parts: int
) -> None:
    cut = [[lengths[cell] for cell in part] for part in split_cells(np.array(lengths), parts, 50_000)]
    total = sorted(map(sum, cut))
    full = max(cut, key=sum)
    others = [part for part in cut if part is not full]
    for other, cell in product(others, full):
        for given_back in (0, *other):
            less = cell - given_back
            assert less <= 0 or max(sum(full) - less, sum(other) + less) >= total[-1]


def test_fewer_cells_than_parts() -> None:
    assert [part.tolist() for part in split_cells(np.array([5, 3]), 4, 5)] == [[0], [1], [], []]
    assert [part.size for part in split_cells(np.zeros(0, np.int64), 3, 5)] == [0, 0, 0]
    assert micro_batch_count(np.zeros(0, np.int64), 5) == 1


def test_more_parts_than_needed_never_overfill_one() -> None:
    lengths = np.array([7, 7, 6, 5, 5, 4, 2])
    for parts in range(micro_batch_count(lengths, 12), 9):
        assert max(int(lengths[part].sum()) for part in split_cells(lengths, parts, 12)) <= 12


def test_what_cannot_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="token_capacity"):
        micro_batch_count(np.array([1201, 5]), 1200)
    with pytest.raises(ConfigError, match="do not fit in 2 forward passes"):
        split_cells(np.array([7, 7, 7]), 2, 10)


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
