"""What a task holds of a source as a whole: counted before it is read, and refused where it does not fit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from cellmill.errors import ResourceError

SHARE = 0.25
"""Of a task's memory, of what is held of the source as a whole, and of what is raw at a time."""
RAW_BYTES = 40
"""Of a stored value while it is raw: value and column of 8 bytes, what they become, and copies by the library."""
_LEAST_MB = 32
"""Tables of usual size have room in the process, however little a task may take beside it."""
_TEXT_OBJECT = 65
"""Bytes of a value of text beside its characters: Python's object, and where it is."""


class _Held:
    """What is held of one source, by what it is and where: what is asked for twice is there once."""

    def __init__(self, megabytes: float) -> None:
        self.megabytes = megabytes
        self.sizes: dict[tuple[str, str], int] = {}


_held: ContextVar[_Held | None] = ContextVar("held", default=None)


@contextmanager
def bounded(megabytes: float) -> Iterator[None]:
    """Have whatever is opened and read within the block hold no more than belongs into a task of so much memory."""
    token = _held.set(_Held(megabytes))
    try:
        yield
    finally:
        _held.reset(token)


def hold(what: str, size: int, where: str) -> None:
    """Count what is about to be read as a whole and kept.

    Parameters
    ----------
    what
        What it is, as a message begins with it.
    size
        Its bytes in memory.
    where
        The source and the place in it.

    Raises
    ------
    ResourceError
        With all else that is held of the source, it does not fit into a task; nothing was read.
    """
    held = _held.get()
    if held is None:
        return
    held.sizes[what, where] = size
    total = sum(held.sizes.values())
    if total > max(_LEAST_MB, held.megabytes * SHARE) * 1e6:
        beside = f" with {(total - size) / 1e6:,.0f} MB of other tables" if total - size > size / 10 else ""
        raise ResourceError(
            f"{what}: {size / 1e6:,.0f} MB must be held as a whole{beside}; `task_memory_mb` is {held.megabytes:,.0f}.",
            where=where,
            fix=f"Raise `task_memory_mb` to {total / 1e6 / SHARE + 1:,.0f}, or split the file.",
        )


def most_values() -> int | None:
    """Return how many stored values of one cell fit into a task; None where nothing says how much memory it has."""
    held = _held.get()
    return None if held is None else int(held.megabytes * 1e6 * SHARE / RAW_BYTES)


def refuse_long(values: int, where: str) -> None:
    """Refuse a cell of so many stored values, which are read and sorted together.

    Raises
    ------
    ResourceError
        They do not fit into a task.
    """
    most, held = most_values(), _held.get()
    if most is not None and held is not None and values > most:
        raise ResourceError(
            f"One cell has {values:,} stored values: {values * RAW_BYTES / 1e6:,.0f} MB at once; `task_memory_mb` is "
            f"{held.megabytes:,.0f}.",
            where=where,
            fix=f"If it is meant to, raise `task_memory_mb` to {values * RAW_BYTES / 1e6 / SHARE + 1:,.0f}; but a cell "
            "has at most a value for each feature: else fetch the file again, or write it again.",
        )


def text_bytes(n: int, sample: Iterable[object]) -> int:
    """Return what so many values of text take that are like those of a sample."""
    lengths = [len(str(value)) for value in sample]
    return int(n * (_TEXT_OBJECT + (sum(lengths) / len(lengths) if lengths else 0)))
