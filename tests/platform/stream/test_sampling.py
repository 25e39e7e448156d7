"""Draws: exact in number, right in expectation, and sets that hold what they say."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellmill.stream.sampling import copies, draw_cells, draw_sets, n_sets, share_out

WEIGHTS = st.lists(st.integers(0, 50), min_size=1, max_size=40).filter(any)


@given(WEIGHTS, st.integers(0, 200), st.integers(0, 999))
def test_each_is_drawn_its_share_rounded_up_or_down(weights: list[int], total: int, phase: int) -> None:
    found = share_out(np.array(weights, float), total, phase / 1000)
    assert found.sum() == total
    for weight, n in zip(weights, found.tolist(), strict=True):
        exact = Fraction(total * weight, sum(weights))
        assert exact - 1 < n < exact + 1
        assert n == 0 or weight > 0


def test_over_epochs_the_share_is_exact_and_neighbours_are_drawn_apart() -> None:
    weights = np.full(64, 1.0)
    times = np.zeros(64)
    together = 0
    for epoch in range(2000):
        draws = draw_cells(weights, 32, seed=3, epoch=epoch, shard=5)
        times += np.bincount(draws, minlength=64)
        together += int({0, 1} <= set(draws.tolist()))
    np.testing.assert_allclose(times / 2000, 0.5, atol=0.06)
    assert together / 2000 == pytest.approx(31 / 63 * 0.5, abs=0.04)


@given(WEIGHTS, st.integers(0, 200), st.integers(0, 5), st.integers(0, 5))
def test_draws_are_a_function_of_their_keys(weights: list[int], total: int, epoch: int, shard: int) -> None:
    one = draw_cells(np.array(weights, float), total, seed=1, epoch=epoch, shard=shard)
    again = draw_cells(np.array(weights, float), total, seed=1, epoch=epoch, shard=shard)
    np.testing.assert_array_equal(one, again)
    assert one.size == total
    assert (np.diff(one) >= 0).all()
    assert [(cell, copy) for cell, copy in zip(one.tolist(), copies(one).tolist(), strict=True)] == sorted(
        {(cell, copy) for cell in set(one.tolist()) for copy in range(one.tolist().count(cell))}
    )


@given(st.lists(st.integers(-1, 4), min_size=1, max_size=60), st.integers(2, 7), st.integers(1, 3), st.integers(0, 9))
def test_a_set_is_of_one_group_and_uses_its_cells_evenly(
    groups: list[int], size: int, min_cells: int, epoch: int
) -> None:
    group = np.array(groups, np.int32)
    draws, again = draw_sets(group, size, min_cells, seed=0, epoch=epoch, shard=0)
    assert draws.size == n_sets(group, size, min_cells) * size
    sets = draws.reshape(-1, size)
    for one in sets:
        (of,) = set(group[one].tolist())
        assert of >= 0
        assert len(set(one.tolist())) == min(size, groups.count(of))
    for value in set(groups):
        cells = np.flatnonzero(group == value)
        times = np.bincount(draws, minlength=group.size)[cells]
        if value < 0 or cells.size < min_cells:
            assert not times.any()
        else:
            assert times.min() >= 1
            assert times.max() - times.min() <= 1
    assert len(set(zip(draws.tolist(), again.tolist(), strict=True))) == draws.size
