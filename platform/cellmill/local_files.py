"""Files on a local disk that are read in parts, and written aside until they are complete."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

PARTIAL = ".partial"
"""How names of files end that are being written; nobody but their writer, or who clears up after it, looks at them."""


@contextmanager
def half_written(path: Path, write: Callable[[BinaryIO], object]) -> Iterator[Path]:
    """Write a file beside `path`, for the block to put in place."""
    partial = path.with_name(f"{path.name}.{secrets.token_hex(8)}{PARTIAL}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with partial.open("xb") as file:
            write(file)
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def read_ranges(path: Path, starts: Sequence[int], ends: Sequence[int]) -> list[bytes]:
    """Return ranges of a file, each as long as asked for."""
    found = []
    with path.open("rb") as file:
        for start, end in zip(starts, ends, strict=True):
            found.append(os.pread(file.fileno(), end - start, start) if end > start else b"")
            if len(found[-1]) != end - start:
                raise OSError(f"the file ends before byte {end:,}")
    return found


def read_into(path: Path, start: int, out: Any) -> None:
    """Fill a writable buffer of bytes from a position of a file on."""
    view = memoryview(out)
    with path.open("rb", buffering=0) as file:
        while view:
            n = os.preadv(file.fileno(), [view], start)
            if not n:
                raise OSError(f"the file ends before byte {start + len(view):,}")
            view, start = view[n:], start + n


def read_tail(path: Path, n: int) -> bytes:
    """Return the last bytes of a file, all of a shorter one."""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - n))
        return file.read()
