"""Values against a slow reference written from the formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellmill.errors import CountsError
from cellmill.tokens import TokenConfig, Tokeniser
from tests.platform.tokens.builders import block_of, values_of
from tests.platform.tokens.reference import bin_range

DTYPES = [np.uint8, np.uint16, np.uint32, np.float32]


def bins(cells: list[list[float]], dtype: Any, n_bins: int = 51, seed: int = 0, **changes: Any) -> list[list[int]]:
    tokeniser = Tokeniser(TokenConfig(n_bins=n_bins, max_genes=10_000, **changes))
    packed = tokeniser.tokenise(block_of(cells, dtype), seed=seed, epoch=0)
    return [list(values_of(packed, cell).values()) for cell in range(len(cells))]


small = st.lists(st.integers(1, 12), min_size=1, max_size=120)
wide = st.lists(st.integers(1, 255), min_size=1, max_size=200)
huge = st.lists(st.integers(1, 5) | st.integers(200, 70_000), min_size=1, max_size=80)
real = st.lists(st.floats(0.125, 1000.0, width=32), min_size=1, max_size=80)


@settings(max_examples=150, deadline=None)
@given(cell=small | wide, n_bins=st.sampled_from([3, 11, 51, 253]), seed=st.integers(0, 1 << 40))
def test_bins_are_those_of_the_formula(cell: list[int], n_bins: int, seed: int) -> None:
    first, last = bin_range(np.array(cell), n_bins)
    for dtype in DTYPES:
        found = np.array(bins([[float(x) for x in cell]], dtype, n_bins, seed)[0])
        assert (first <= found).all()
        assert (found <= last).all()


@settings(max_examples=80, deadline=None)
@given(cell=huge)
def test_counts_above_255_and_above_65535(cell: list[int]) -> None:
    first, last = bin_range(np.array(cell), 51)
    for dtype in (np.uint32, np.float32):
        found = np.array(bins([[float(x) for x in cell]], dtype)[0])
        assert (first <= found).all()
        assert (found <= last).all()


@settings(max_examples=80, deadline=None)
@given(cell=real)
def test_fractional_values(cell: list[float]) -> None:
    first, last = bin_range(np.array(cell, np.float32), 51)
    found = np.array(bins([cell], np.float32)[0])
    assert (first <= found).all()
    assert (found <= last).all()


@settings(max_examples=60, deadline=None)
@given(cell=small | wide)
def test_the_same_counts_give_the_same_bins_in_every_type(cell: list[int]) -> None:
    cells = [[float(x) for x in cell]]
    assert all(bins(cells, dtype) == bins(cells, np.uint8) for dtype in DTYPES)


@settings(max_examples=60, deadline=None)
@given(cell=st.lists(st.integers(1, 30), min_size=2, max_size=60).filter(lambda cell: (len(cell) - 1) % 7))
def test_bins_do_not_change_under_a_monotone_map(cell: list[int]) -> None:
    # 50 edges cut a cell into 49 parts: in cells of 7 k + 1 values an inner edge falls on a value, and rounding decides
    # whether they are equal.
    logs = np.log1p(np.array(cell, np.float64)).astype(np.float32)
    plain, mapped = bins([[float(x) for x in cell]], np.uint8)[0], bins([logs.tolist()], np.float32)[0]
    assert plain == mapped


@settings(max_examples=30, deadline=None)
@given(cell=small | wide, target=st.sampled_from([0.5, 1e4]), value=st.sampled_from(["bins", "midrank"]))
def test_bins_are_the_same_where_counts_are_to_be_normalised(cell: list[int], target: float, value: str) -> None:
    cells = [[float(x) for x in cell]]
    assert bins(cells, np.uint16, value=value, normalize_total=target) == bins(cells, np.uint16, value=value)


def test_midrank_is_the_middle_and_without_chance() -> None:
    rng = np.random.default_rng(1)
    for n in (1, 2, 49, 50, 51, 300):
        cell = rng.geometric(0.5, n).astype(float).tolist()
        first, last = bin_range(np.array(cell), 51)
        found = bins([cell], np.uint8, value="midrank", seed=1)[0]
        assert found == ((first + last) // 2).tolist()
        assert found == bins([cell], np.float32, value="midrank", seed=2)[0]


def test_tied_values_are_uniform_over_their_bins() -> None:
    cells = [[1.0] * 60 + [2.0] * 25 + [9.0] * 15] * 400
    first, last = bin_range(np.array(cells[0]), 51)
    found = np.array(bins(cells, np.uint8))
    for value in (0, 60, 85):
        low, high = int(first[value]), int(last[value])
        columns = first == low
        width = high - low + 1
        seen = np.bincount((found[:, columns] - low).ravel(), minlength=width)
        expected = seen.sum() / width
        chi = float(((seen - expected) ** 2 / expected).sum())
        # 5 standard deviations of chi-square above its mean.
        assert chi < (width - 1) + 5 * np.sqrt(2 * (width - 1) + 1)


def test_all_equal_and_one_gene_are_uniform_over_all_bins() -> None:
    for n in (1, 7):
        found = np.concatenate(bins([[3.0] * n] * 2000, np.uint8))
        seen = np.bincount(found, minlength=51)
        assert seen[0] == 0
        assert (seen[1:] > 0).all()
        assert abs(found.mean() - 25.5) < 1.0


def test_distinct_values_have_equal_mass_and_the_last_bin_holds_the_maximum() -> None:
    cell = np.random.default_rng(0).permutation(np.arange(1, 981)).astype(float)
    seen = np.bincount(bins([cell.tolist()], np.uint16)[0], minlength=51)
    assert seen[50] == 1
    assert seen[1:50].max() - seen[1:50].min() <= 2


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_log1p(dtype: Any) -> None:
    cell = [1.0, 2.0, 2.0, 7.0, 200.0]
    plain = bins([cell], dtype, value="log1p")[0]
    np.testing.assert_allclose(plain, np.log1p(cell), rtol=1e-6)
    scaled = bins([cell], dtype, value="log1p", normalize_total=1e4)[0]
    np.testing.assert_allclose(scaled, np.log1p(np.array(cell) * 1e4 / np.sum(cell)), rtol=1e-6)


@pytest.mark.parametrize("value", ["bins", "log1p"])
def test_what_is_no_count_is_refused(value: str) -> None:
    for dtype, bad in ((np.uint8, 0.0), (np.uint16, 0.0), (np.float32, 0.0), (np.float32, -1.5), (np.float32, np.nan)):
        with pytest.raises(CountsError, match="zero, negative, infinite or not a number"):
            bins([[1.0, 2.0], [3.0, bad]], dtype, value=value)
