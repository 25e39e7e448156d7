"""The same work for many things, in threads of this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_threads(function: Callable[[T], R], things: Iterable[T], threads: int) -> list[R]:
    """Return what a function gives for each thing, in order; after the first error nothing more is begun.

    Parameters
    ----------
    function
        Safe between threads.
    things
        What it is called with.
    threads
        How many there are.
    """
    with ThreadPoolExecutor(threads) as pool:
        tasks = [pool.submit(function, thing) for thing in things]
        try:
            done, _ = wait(tasks, return_when=FIRST_EXCEPTION)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        for task in done:
            task.result()
        return [task.result() for task in tasks]
