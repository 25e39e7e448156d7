"""What a person sees in the terminal, and what a program reads from standard output."""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment
from rich.text import Text

_KEPT = "\t\n"
_SHOWN = {
    **{code: 0x2400 + code for code in range(0x20) if chr(code) not in _KEPT},
    0x7F: 0x2421,
    **dict.fromkeys(
        [*range(0x80, 0xA0), 0x061C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A)], 0xFFFD
    ),
}
_HIDDEN = re.compile(f"[{''.join(map(re.escape, map(chr, _SHOWN)))}]")


def printable(text: str) -> str:
    """Return text with a picture in place of every character that steers a terminal or turns the order of letters.

    Files of strangers hold such characters: escape sequences clear screens and change titles, and a text that runs
    backwards reads like another.
    """
    return text.translate(_SHOWN) if _HIDDEN.search(text) else text


class _PrintableConsole(Console):
    """Makes all text printable, whatever prints it; codes of the library's own are no text."""

    def render_str(self, text: str, **how: Any) -> Text:
        """Return a string's text; its width is known from here on."""
        return super().render_str(printable(text), **how)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the pieces that anything is printed as."""
        for piece in super().render(renderable, options):
            yield piece if piece.control else Segment(printable(piece.text), piece.style)


console: Console = _PrintableConsole(stderr=True, highlight=False, markup=False, emoji=False)
"""Prints text as it stands: names and values of users hold brackets. Styles are given with `Text` or ``style=``."""

_PLAIN_INTERVAL_S = 5.0


def emit(payload: Mapping[str, Any], as_json: bool, render: Callable[[], None]) -> None:
    """Print a command's result: `payload` as one JSON object on standard output, or for people."""
    if as_json:
        json.dump(payload, sys.stdout, indent=1, default=str)
        sys.stdout.write("\n")
        sys.stdout.flush()
    else:
        render()


Showing = Callable[[int | None, str, str, int], AbstractContextManager[Callable[[int], None]]]
"""Shows progress by its total, description, unit, and what was done before."""

_showing: ContextVar[Showing | None] = ContextVar("showing", default=None)


@contextmanager
def showing_with(show: Showing) -> Iterator[None]:
    """Have progress shown in another way, for who has no terminal that anybody sees."""
    token = _showing.set(show)
    try:
        yield
    finally:
        _showing.reset(token)


@contextmanager
def progress(
    total: int | None,
    description: str,
    unit: str = "cells",
    left: Callable[[], float | None] | None = None,
    done: int = 0,
) -> Iterator[Callable[[int], None]]:
    """Show progress; yields a function to call with the number of units done since the last call.

    A terminal gets a bar with the time left, below those of other threads; anything else a plain line every five
    seconds, none for what is done sooner.

    Parameters
    ----------
    total
        Units of all the work, if that is known.
    description, unit
        What is being done, and to what.
    left
        Returns the seconds that are left, or None; by default, units go on as fast as they did.
    done
        Units that were done before, which say nothing of how fast it goes.
    """
    if (show := _showing.get()) is not None:
        with show(total, description, unit, done) as advance:
            yield advance
    elif console.is_terminal:
        with _bars.shown() as bars:
            task = bars.add_task(description, total=total, completed=done, unit=unit, left=left)
            try:
                yield lambda n: bars.update(task, advance=n)
            finally:
                bars.remove_task(task)
    else:
        yield _PlainProgress(total, description, unit, left, done)


class _Bars:
    """The bars of all threads: a terminal has room for one display, which is there while anybody shows something."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._display: Progress | None = None

    @contextmanager
    def shown(self) -> Iterator[Progress]:
        with self._lock:
            if self._display is None:
                columns = (
                    TextColumn("{task.description}", markup=False),
                    BarColumn(),
                    MofNCompleteColumn(),
                    TextColumn("{task.fields[unit]}", markup=False),
                    TimeElapsedColumn(),
                    _Left(),
                )
                self._display = Progress(*columns, console=console, transient=True)
                self._display.start()
            self._users += 1
            display = self._display
        try:
            yield display
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    self._display = None
                    display.stop()


_bars = _Bars()


class _Left(TimeRemainingColumn):
    """The time left, as the bar reckons it, or as somebody knows better."""

    def render(self, task: Task) -> Text:
        """Return it as hours, minutes and seconds."""
        known: Callable[[], float | None] | None = task.fields["left"]
        if known is None:
            return super().render(task)
        left = known()
        return Text("-:--:--" if left is None else str(timedelta(seconds=round(left))), style="progress.remaining")


class _PlainProgress:
    def __init__(
        self, total: int | None, description: str, unit: str, left: Callable[[], float | None] | None, done: int
    ) -> None:
        self.total, self.description, self.unit = total, description, unit
        self.left = left or self._left
        self.done = self.before = done
        self.start = self.last = time.monotonic()

    def __call__(self, n: int) -> None:
        self.done += n
        now = time.monotonic()
        finished = self.total is not None and self.done >= self.total
        # Lines of what takes no time would hide the others; the last one ends those that were there.
        if now - (self.start if finished else self.last) < _PLAIN_INTERVAL_S:
            return
        self.last = now
        elapsed = now - self.start
        rate = (self.done - self.before) / elapsed if elapsed > 0 else 0.0
        of = f" of {self.total:,}" if self.total is not None else ""
        left = None if finished else self.left()
        end = "" if left is None else f", {left:,.0f} s left"
        speed = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
        console.print(f"{self.description}: {self.done:,}{of} {self.unit}, {speed} a second{end}")

    def _left(self) -> float | None:
        elapsed, done = time.monotonic() - self.start, self.done - self.before
        return elapsed * (self.total - self.done) / done if self.total and done else None
