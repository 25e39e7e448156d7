"""How far an ingestion is, and how long it still takes, by what it has measured itself."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellmill.ingestion.work import Work


class Run:
    """A run by a clock of its own: chunks and shards of so many cells, each of which takes so many seconds."""

    def __init__(self, chunks: list[tuple[int, float]], shards: list[tuple[int, float]]) -> None:
        self.now, self.chunks, self.shards = 100.0, chunks, shards
        self.total_s = sum(seconds for _, seconds in (*chunks, *shards))
        self.told: list[int] = []
        self.errors: list[tuple[float, float]] = []

    def go(self) -> None:
        """Go through all of it, noting after each step the share of time that is over and how wrong the forecast is."""
        work = Work(sum(cells for cells, _ in self.chunks), lambda: self.now)
        kept = sum(cells for cells, _ in self.shards)
        for number, (cells, seconds) in enumerate((*self.chunks, *self.shards)):
            self.now += seconds
            self.told.append(work.read(cells) if number < len(self.chunks) else work.written(cells, kept))
            over, left = self.now - 100.0, work.left()
            assert left is not None
            self.errors.append((over / self.total_s, abs(over + left - self.total_s) / self.total_s))


@given(st.lists(st.integers(1, 1000), min_size=1), st.data())
def test_the_count_of_cells_rises_to_all_of_them_whatever_is_left_out(chunks: list[int], data: Any) -> None:
    kept = [n for cells in chunks if (n := data.draw(st.integers(0, cells)))]
    run = Run(
        [(cells, data.draw(st.floats(0, 100))) for cells in chunks],
        [(cells, data.draw(st.floats(0, 100))) for cells in kept],
    )
    run.total_s = max(run.total_s, 1e-9)
    run.go()
    assert all(step >= 0 for step in run.told)
    assert sum(run.told) == sum(chunks) if kept else sum(run.told) <= sum(chunks)


@pytest.mark.parametrize(("reading", "writing"), [(1.0, 1.0), (10.0, 1.0), (1.0, 10.0)])
def test_the_time_left_is_right_as_soon_as_both_parts_have_been_measured(reading: float, writing: float) -> None:
    run = Run([(100, reading)] * 50, [(200, writing)] * 20)
    run.go()
    assert all(error < 0.01 for _, error in run.errors[50:])
    # Before, writing is taken to be two thirds of reading.
    share = run.total_s / (50 * reading) - 1
    assert run.errors[25][1] == pytest.approx(abs(share - 2 / 3) / (1 + share), abs=0.01)
    # The count is the share of the time that is over; what was thought to be more is not taken back.
    done, over = sum(run.told[:60]) / 5000, (50 * reading + 10 * writing) / run.total_s
    assert over - 0.01 < done < (over + 0.01 if share > 2 / 3 else 1)


def test_chunks_that_an_earlier_run_has_read_do_not_make_the_rest_seem_fast() -> None:
    run = Run([(100, 0.001)] * 80 + [(100, 2.0)] * 20, [(1000, 40 / 3)] * 10)
    run.go()
    assert all(error < 0.05 for over, error in run.errors if over > 0.01)


def test_a_source_that_is_slower_than_those_before_is_noticed() -> None:
    run = Run([(100, 0.1)] * 50 + [(100, 1.0)] * 50, [(1000, 20 / 3)] * 10)
    run.go()
    assert all(error < 0.05 for over, error in run.errors if over > 0.1)


def test_between_two_steps_time_goes_on() -> None:
    now = [0.0]
    work = Work(100, lambda: now[0])
    assert work.left() is None
    now[0] = 10.0
    work.read(50)
    assert work.left() == pytest.approx(10 + 20 * 2 / 3)
    now[0] = 14.0
    assert work.left() == pytest.approx(6 + 20 * 2 / 3)
    now[0] = 40.0
    assert work.left() == pytest.approx(20 * 2 / 3)
