"""Where tasks run: in this process, or wherever a backend at the edge puts them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

_THREADS = max(2, min(16, os.cpu_count() or 2))

Row = dict[str, Any]
"""A task's result: numbers, text and one-dimensional arrays, which travel as Arrow columns."""


class Backend(Protocol):
    """Runs one function for each number below n."""

    def map(self, function: Callable[[int], Row], n: int) -> Iterator[Row]:
        """Yield the results, in any order.

        Raises
        ------
        CellmillError
            The first that a task raised.
        """
        ...

    def gather(self, function: Callable[[int], T], names: Sequence[str]) -> Iterator[tuple[int, T]]:
        """Yield number and result of a task for each name, as they finish; results are any objects.

        Parameters
        ----------
        function
            Called with each number below that of the names.
        names
            What each task is about, for messages.

        Raises
        ------
        CellmillError
            The first that a task raised.
        """
        ...


class LocalBackend:
    """Runs tasks in this process: those of `map` one after the other, those of `gather` in threads."""

    def map(self, function: Callable[[int], Row], n: int) -> Iterator[Row]:
        """Yield the results in order."""
        return map(function, range(n))

    def gather(self, function: Callable[[int], T], names: Sequence[str]) -> Iterator[tuple[int, T]]:
        """Yield numbers and results as threads finish: most of the time goes into digests, which wait for no other."""
        pool = ThreadPoolExecutor(min(_THREADS, len(names)))
        try:
            tasks = {pool.submit(function, number): number for number in range(len(names))}
            for task in as_completed(tasks):
                yield tasks[task], task.result()
        finally:
            pool.shutdown(cancel_futures=True)
