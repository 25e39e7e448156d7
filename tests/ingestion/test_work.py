import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellmill.ingestion import pipeline
from cellmill.ingestion.plan import plan_source
from cellmill.ingestion.work import Work
from tests.ingestion.cells import config, make_adata, write


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


def test_sources_are_planned_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [write(make_adata(5, seed=seed), tmp_path / f"{seed}.h5ad") for seed in range(2)]
    both = threading.Barrier(2, timeout=20)
    real = plan_source

    def waits(*arguments: Any) -> Any:
        both.wait()
        return real(*arguments)

    monkeypatch.setattr(pipeline, "plan_source", waits)
    plans = pipeline.plan(config(tmp_path / "atlas", *paths))
    assert [plan.dataset for plan in plans] == ["0", "1"]
