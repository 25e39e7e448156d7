"""What a person sees in the terminal, and what a program reads from standard output."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

console = Console(stderr=True, highlight=False, markup=False, emoji=False)
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


Showing = Callable[[int | None, str, str], AbstractContextManager[Callable[[int], None]]]
"""Shows progress by its total, description and unit."""

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
    total: int | None, description: str, unit: str = "cells", left: Callable[[], float | None] | None = None
) -> Iterator[Callable[[int], None]]:
    """Show progress; yields a function to call with the number of units done since the last call.

    A terminal gets a bar with the time left, anything else a plain line every five seconds.

    Parameters
    ----------
    total
        Units of all the work, if that is known.
    description, unit
        What is being done, and to what.
    left
        Returns the seconds that are left, or None; by default, units go on as fast as they did.
    """
    if (show := _showing.get()) is not None:
        with show(total, description, unit) as advance:
            yield advance
        return
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn() if left is None else _Left(left),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(description, total=total, unit=unit)
            yield lambda n: bar.update(task, advance=n)
        return
    yield _PlainProgress(total, description, unit, left)


class _Left(ProgressColumn):
    """The time left, as somebody knows better than the bar."""

    def __init__(self, left: Callable[[], float | None]) -> None:
        super().__init__()
        self._left = left

    def render(self, task: Task) -> Text:
        """Return it as hours, minutes and seconds."""
        left = self._left()
        return Text("-:--:--" if left is None else str(timedelta(seconds=round(left))), style="progress.remaining")


class _PlainProgress:
    def __init__(self, total: int | None, description: str, unit: str, left: Callable[[], float | None] | None) -> None:
        self.total, self.description, self.unit = total, description, unit
        self.left = left or self._left
        self.done = 0
        self.start = self.last = time.monotonic()

    def __call__(self, n: int) -> None:
        self.done += n
        now = time.monotonic()
        finished = self.total is not None and self.done >= self.total
        if now - self.last < _PLAIN_INTERVAL_S and not finished:
            return
        self.last = now
        elapsed = now - self.start
        rate = self.done / elapsed if elapsed > 0 else 0.0
        of = f" of {self.total:,}" if self.total is not None else ""
        left = None if finished else self.left()
        end = "" if left is None else f", {left:,.0f} s left"
        console.print(f"{self.description}: {self.done:,}{of} {self.unit}, {rate:,.0f} a second{end}")

    def _left(self) -> float | None:
        elapsed = time.monotonic() - self.start
        return elapsed * (self.total - self.done) / self.done if self.total and self.done else None
