"""Progress tells what is done and what is left, to a terminal and to a log."""

import io

import pytest
from rich.console import Console

from cellmill import console


@pytest.mark.parametrize("terminal", [False, True])
def test_the_time_left_is_what_the_work_says(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(console, "console", Console(file=shown, force_terminal=terminal, width=120))
    monkeypatch.setattr(console, "_PLAIN_INTERVAL_S", 0.0)
    with console.progress(100, "counting", left=lambda: 3661.4) as advance:
        advance(40)
    assert ("1:01:01" if terminal else "counting: 40 of 100 cells") in shown.getvalue()
    assert terminal or "3,661 s left" in shown.getvalue()


def test_without_it_units_go_on_as_fast_as_they_did(monkeypatch: pytest.MonkeyPatch) -> None:
    shown, now = io.StringIO(), [0.0]
    monkeypatch.setattr(console, "console", Console(file=shown, width=120))
    monkeypatch.setattr("cellmill.console.time.monotonic", lambda: now[0])
    with console.progress(100, "counting") as advance:
        now[0] = 10.0
        advance(25)
        now[0] = 30.0
        advance(75)
    assert shown.getvalue().splitlines() == [
        "counting: 25 of 100 cells, 2 a second, 30 s left",
        "counting: 100 of 100 cells, 3 a second",
    ]
