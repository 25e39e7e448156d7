"""Where tasks run: in this process, or wherever a backend at the edge puts them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

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


class LocalBackend:
    """Runs tasks one after the other in this process."""

    def map(self, function: Callable[[int], Row], n: int) -> Iterator[Row]:
        """Yield the results in order."""
        return map(function, range(n))
