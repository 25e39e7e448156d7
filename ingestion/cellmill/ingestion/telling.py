"""Progress of tasks on Ray: told by the task that makes it, shown in the terminal of whoever started it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from uuid import uuid4

import ray
from ray.exceptions import GetTimeoutError, RayError

from cellmill.console import progress, showing_with

_INTERVAL_S = 1.0


class Bar(NamedTuple):
    """What one task is at."""

    total: int | None
    description: str
    unit: str
    done: int


class Board:
    """Bars of all tasks, by keys of their own."""

    def __init__(self) -> None:
        self._bars: dict[str, Bar] = {}

    def put(self, key: str, bar: Bar | None) -> None:
        """Replace a bar, or take it off."""
        self._bars.pop(key, None)
        if bar is not None:
            self._bars[key] = bar

    def read(self) -> dict[str, Bar]:
        """Return all."""
        return self._bars


class Watched:
    """Shows what tasks tell, as soon as they take long; until then there is no board, and nobody waits for one.

    Parameters
    ----------
    name
        Of the board, by which tasks find it.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._board: Any = None
        self._shown: dict[str, tuple[ExitStack, Callable[[int], None], int]] = {}

    def show(self) -> None:
        """Show what is told now."""
        if self._board is None:
            actor: Any = ray.remote(num_cpus=0)(Board)
            self._board = actor.options(name=self._name, get_if_exists=True).remote()
        try:
            bars: dict[str, Bar] = ray.get(self._board.read.remote(), timeout=_INTERVAL_S)
        except GetTimeoutError:
            return
        except RayError:
            # Nothing that is only shown ends a run: the next look puts up another.
            self._board = None
            return
        for key in [key for key in self._shown if key not in bars]:
            self._shown.pop(key)[0].close()
        for key, bar in bars.items():
            if key not in self._shown:
                stack = ExitStack()
                advance = stack.enter_context(progress(bar.total, bar.description, bar.unit, done=bar.done))
                self._shown[key] = stack, advance, bar.done
            stack, advance, done = self._shown[key]
            advance(bar.done - done)
            self._shown[key] = stack, advance, bar.done

    def close(self) -> None:
        """Take off all that is shown."""
        for stack, _, _ in self._shown.values():
            stack.close()
        self._shown.clear()


@contextmanager
def telling(name: str) -> Iterator[None]:
    """Have progress in this task told to the board of a name, once there is one."""

    @contextmanager
    def tell(total: int | None, description: str, unit: str, done: int) -> Iterator[Callable[[int], None]]:
        key, last = uuid4().hex, time.monotonic()
        board: Any = None

        def advance(n: int) -> None:
            nonlocal done, last, board
            done += n
            if time.monotonic() - last >= _INTERVAL_S:
                last = time.monotonic()
                board = board or _board(name)
                if board is not None:
                    board.put.remote(key, Bar(total, description, unit, done))

        try:
            yield advance
        finally:
            if board is not None:
                board.put.remote(key, None)

    with showing_with(tell):
        yield


def _board(name: str) -> Any:
    try:
        return ray.get_actor(name)
    except ValueError:
        return None
