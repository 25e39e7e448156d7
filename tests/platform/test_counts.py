from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cellmill.counts import check_counts
from cellmill.errors import CountsError


@given(
    hnp.arrays(np.uint32, st.integers(0, 30)),
    st.sampled_from([np.float64, np.int64, np.uint32]),
    st.floats(-1e-11, 1e-11),
)
def test_counts_come_back_exactly_whatever_holds_them(counts: np.ndarray, dtype: type, noise: float) -> None:
    data: npt.NDArray[Any] = counts.astype(dtype)
    if dtype is np.float64:
        data = data + noise
    found = check_counts(data, "X")
    assert found.dtype == np.uint32
    np.testing.assert_array_equal(found, counts)


def test_noise_of_single_precision_grows_with_the_count() -> None:
    counts = np.arange(20_000, dtype=np.float32)
    noisy = np.expm1(np.log1p(counts.astype(np.float64))).astype(np.float32)
    np.testing.assert_array_equal(check_counts(noisy, "X"), counts)


@pytest.mark.parametrize(
    ("values", "cause"),
    [
        (np.log1p(np.arange(5.0)), "log"),
        (np.array([0.0, 4212.7, 99.3]), "normalised"),
        (np.array([0.2, 0.0017, 1e-5]), "normalised to shares"),
        (np.array([3.0, 9e-4, 12.0]), "1 of 3|33.3% of the"),
        (np.array([3.0009, 1.0]), "not integers"),
        (np.array([-1.2, 0.3]), "scaled"),
        (np.array([-3, 1]), "scaled"),
        (np.array([1.0, np.nan]), "NaN"),
        (np.array([1.0, np.inf]), "NaN or infinite"),
        (np.array([2.0**33]), "largest count"),
        (np.array([2.0**24 + 2], dtype=np.float32), "float32 holds only counts up to 16,777,216 exactly"),
        (np.array([2050], dtype=np.float16), "float16 holds only counts up to 2,048 exactly"),
        (np.array([1.0] * 5000 + [1.5]), "1 of 5,001 values are not integers"),
        (np.array([2**40], dtype=np.int64), "largest count"),
        (np.array([-np.inf, 1.0]), "NaN or infinite"),
        (np.array(["a", "b"]), "not numbers"),
        (np.array([1, None], dtype=object), "not numbers"),
    ],
)
def test_anything_else_is_refused_with_the_likely_cause(values: np.ndarray, cause: str) -> None:
    with pytest.raises(CountsError, match=cause) as error:
        check_counts(values, "file.h5ad: X")
    assert error.value.where == "file.h5ad: X"


def test_booleans_and_nothing_are_counts() -> None:
    assert check_counts(np.array([True, False]), "X").tolist() == [1, 0]
    assert check_counts(np.array([], dtype=np.float32), "X").size == 0
