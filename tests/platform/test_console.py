"""Progress tells what is done and what is left, to a terminal and to a log."""

import io
import threading

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
        "counting: 25 of 100 cells, 2.5 a second, 30 s left",
        "counting: 100 of 100 cells, 3.3 a second",
    ]


def test_what_was_done_before_does_not_count_as_speed_and_short_work_is_not_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown, now = io.StringIO(), [0.0]
    monkeypatch.setattr(console, "console", Console(file=shown, width=120))
    monkeypatch.setattr("cellmill.console.time.monotonic", lambda: now[0])
    with console.progress(100, "fetching", "bytes", done=60) as advance:
        now[0] = 10.0
        advance(10)
    with console.progress(100, "digesting", "bytes") as advance:
        now[0] = 14.9
        advance(100)
    assert shown.getvalue().splitlines() == ["fetching: 70 of 100 bytes, 1 a second, 30 s left"]


def test_a_terminal_shows_what_several_threads_do_below_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(console, "console", Console(file=shown, force_terminal=True, width=120))
    all_there, first_gone = threading.Barrier(3, timeout=20), threading.Event()
    last: list[str] = []

    def frame() -> str:
        """Return what the terminal shows now."""
        display = console._bars._display
        assert display is not None
        shown.truncate(0)
        display.refresh()
        return shown.getvalue()

    def work(name: str) -> None:
        with console.progress(10, name) as advance:
            advance(3)
            all_there.wait()
            if name == "second":
                # It outlives the one that began before it.
                first_gone.wait(20)
                last.append(frame())

    threads = {name: threading.Thread(target=work, args=(name,)) for name in ("first", "second")}
    with console.progress(2, "planning"):
        for thread in threads.values():
            thread.start()
        all_there.wait()
        now = frame()
        assert [name for name in ("planning", "first", "second") if name not in now] == []
        threads["first"].join(20)
        first_gone.set()
        threads["second"].join(20)
        assert "second" in last[0]
        assert "first" not in last[0]
    assert console._bars._display is None
