from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cellmill.ingestion.work import Work


@given(st.lists(st.integers(1, 1000), min_size=1), st.data())
def test_the_count_of_cells_rises_to_all_of_them_whatever_is_left_out(chunks: list[int], data: Any) -> None:
    told: list[int] = []
    work = Work(told.append, sum(chunks))
    for cells in chunks:
        work.read(cells)
    halfway = sum(told)
    kept = [data.draw(st.integers(0, cells)) for cells in chunks]
    for cells in kept:
        if cells:
            work.written(cells, sum(kept))
    assert all(step > 0 for step in told)
    assert 0.5 * sum(chunks) - 1 <= halfway <= 0.7 * sum(chunks) + 1
    if any(kept):
        assert sum(told) == sum(chunks)
