"""What a task holds of a source as a whole: counted before it is read, and refused where it does not fit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from cellmill.errors import ResourceError

_SHARE = 0.25
"""Of a task's memory; the rest is for the cells that are read at a time."""
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
    if total > max(_LEAST_MB, held.megabytes * _SHARE) * 1e6:
        beside = f" with {(total - size) / 1e6:,.0f} MB of other tables" if total - size > size / 10 else ""
        raise ResourceError(
            f"{what}: {size / 1e6:,.0f} MB must be held as a whole{beside}; `task_memory_mb` is {held.megabytes:,.0f}.",
            where=where,
            fix=f"Raise `task_memory_mb` to {total / 1e6 / _SHARE + 1:,.0f}, or split the file.",
        )


def text_bytes(n: int, sample: Iterable[object]) -> int:
    """Return what so many values of text take that are like those of a sample."""
    lengths = [len(str(value)) for value in sample]
    return int(n * (_TEXT_OBJECT + (sum(lengths) / len(lengths) if lengths else 0)))
