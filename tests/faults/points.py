"""Named points of a process at which it may be killed: before, in the middle of, and after each change of the storage.

The product knows nothing of them: its storage is wrapped in the process that shall die.
"""

from __future__ import annotations

import os
import re
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from cellmill.atlas.dealing import Heaps
from cellmill.storage import Storage

Point = tuple[str, str, int]
"""What is done, the phase (before, torn, after), and how often it was done before."""

_KINDS = {
    r"catalog/_delta_log/\d+\.json": "delta commit",
    r"catalog/.*\.parquet": "catalog file",
    r"shards/.*/X/.*/c/\d+": "shard counts",
    r"shards/.*": "shard description",
    r"cells/.*": "cells",
    r"staging/.*/receipts/.*": "receipt",
    r"staging/.*": "staging",
    r"hashes/.*": "hash run",
    r"overlays/.*": "overlay",
    r"vocabulary/.*": "vocabulary segment",
    r"leases/.*": "lease",
    r"withdrawals/.*": "withdrawal",
    r"forgotten/.*": "forgotten mark",
    r"reports/.*": "report",
    r"atlas\.json": "atlas marker",
}


def kind_of(key: str) -> str:
    """Return what is stored under a key, in words."""
    return next((kind for pattern, kind in _KINDS.items() if re.fullmatch(pattern, key)), key.partition("/")[0])


class Points:
    """The points that a process passes; at one of them it kills itself, or `victims`."""

    def __init__(self, fatal: Point | None = None, victims: tuple[int, ...] = ()) -> None:
        self.passed: list[Point] = []
        self._fatal = fatal
        self._victims = victims
        self._counts: Counter[tuple[str, str]] = Counter()

    def __call__(self, name: str, phase: str) -> bool:
        """Pass a point; return whether the process dies here, after what is torn has been written."""
        if name == "put lease" and threading.current_thread() is not threading.main_thread():
            return False  # renewals come by the clock, not by what is done
        point = (name, phase, self._counts[name, phase])
        self._counts[name, phase] += 1
        self.passed.append(point)
        if point != self._fatal:
            return False
        if phase != "torn":
            self.die()
        return True

    def die(self) -> None:
        """Kill, without a chance to clean up."""
        for pid in (*self._victims, os.getpid()):
            os.kill(pid, signal.SIGKILL)

    def install(self) -> None:
        """Wrap the storage of this process, and the temporary files of a compaction."""
        for name in ("put", "put_if_absent", "put_parts", "put_file"):
            setattr(Storage, name, self._writer(name, getattr(Storage, name)))
        for name in ("delete", "delete_tree"):
            setattr(Storage, name, self._deleter(getattr(Storage, name)))
        for name in ("add", "take", "drop"):
            setattr(Heaps, name, self._around(f"{name} temporary cells", getattr(Heaps, name)))

    def _writer(self, method: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def write(storage: Storage, key: str, content: Any) -> Any:
            if method == "put_file" and not storage.is_local:
                return real(storage, key, content)
            name = f"put {kind_of(key)}"
            if method == "put_parts":
                content = list(content)
            self(name, "before")
            if self(name, "torn"):
                whole = content if isinstance(content, bytes) else b"half"
                path = storage.local_path(key)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.with_name(f"{path.name}.0123456789abcdef.partial").write_bytes(whole[: len(whole) // 2])
                self.die()
            found = real(storage, key, content)
            self(name, "after")
            return found

        return write

    def _around(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def work(*arguments: Any) -> Any:
            self(name, "before")
            found = real(*arguments)
            self(name, "after")
            return found

        return work

    def _deleter(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def delete(storage: Storage, key: str) -> None:
            name = f"delete {kind_of(key + '/')}"
            self(name, "before")
            real(storage, key)
            self(name, "after")

        return delete


def named(points: list[Point]) -> Iterator[tuple[str, str]]:
    """Yield the names and phases among points, each once, in order."""
    yield from dict.fromkeys((name, phase) for name, phase, _ in points)
