"""How well batches are mixed, against scipy and against draws."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from cellmill.stream.mixing import class_counts, entropy, mixing, random_entropy

POPULATION = np.array([500, 300, 150, 50, 0])
EVERY = np.repeat(np.arange(5), POPULATION).astype(np.int32)


def test_entropy_is_scipys() -> None:
    counts = np.random.default_rng(0).integers(0, 9, (50, 6))
    np.testing.assert_allclose(entropy(counts), stats.entropy(counts, base=2, axis=1))
    assert entropy(np.zeros((1, 3), np.int64)).tolist() == [0.0]


def test_classes_are_counted_batch_by_batch() -> None:
    codes = np.array([0, 1, 1, -1, 2, 2], np.int32)
    assert class_counts(codes, np.array([2, 0, 4]), 3).tolist() == [[1, 1, 0], [0, 0, 0], [0, 1, 2]]


def test_random_batches_are_as_good_as_random_and_sorted_ones_are_not() -> None:
    sizes = np.array([64] * 15 + [40])
    shuffled = np.random.default_rng(1).permutation(EVERY)
    assert mixing(shuffled, sizes, POPULATION) == pytest.approx(1.0, abs=0.02)
    assert mixing(EVERY, sizes, POPULATION) < 0.2
    assert mixing(np.zeros(100, np.int32), np.array([50, 50]), np.array([100])) == 1.0


def test_the_expected_entropy_of_small_batches_is_below_that_of_the_population() -> None:
    whole = float(entropy(POPULATION[None])[0])
    assert random_entropy(POPULATION, 8) < random_entropy(POPULATION, 200) < whole
    assert random_entropy(POPULATION, 10_000) == pytest.approx(whole)
