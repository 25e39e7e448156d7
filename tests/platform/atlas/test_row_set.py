import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellmill.atlas.row_set import RowSet


@given(st.lists(st.booleans(), max_size=400), st.integers(1, 70))
def test_rows_are_those_of_the_mask(mask: list[bool], repeat: int) -> None:
    array = np.repeat(np.array(mask, bool), repeat)
    rows = RowSet(array)
    assert rows.n == array.sum()
    assert rows.rows().dtype == np.uint32
    assert np.array_equal(rows.rows(), np.flatnonzero(array))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 1.0])
def test_memory_is_at_most_a_bit_a_row(share: float) -> None:
    mask = np.random.default_rng(0).random(65_536) < share
    assert RowSet(mask).nbytes <= 65_536 // 8
    assert RowSet(np.arange(65_536) < 65_536 * share).nbytes <= 8
