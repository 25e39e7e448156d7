"""Compiling numeric kernels with numba, with their types kept."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import numba
from numba.core.caching import FunctionCache

F = TypeVar("F", bound=Callable[..., object])


class SharedCache(FunctionCache):
    """numba's cache of compiled code, in which one process is at a time.

    numba writes down which file has the code for which types before it writes that file. Of two processes that compile
    a kernel for different types at once, one could so be given the code for the types of the other.
    """

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return compiled code for a signature, None where there is none."""
        with self.alone():
            return super().load_overload(sig, target_context)  # type: ignore[no-untyped-call]

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep compiled code for a signature."""
        with self.alone():
            super().save_overload(sig, data)  # type: ignore[no-untyped-call]

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes out; threads of this one are kept out by numba's own lock."""
        try:
            descriptor = os.open(os.path.join(self.cache_path, "numba.lock"), os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:
            yield  # Where nothing can be written, files do not change either.
            return
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def compiled(function: F) -> F:
    """Compile a kernel to machine code, once a machine; it runs without the interpreter's lock."""
    kernel: Any = numba.njit(nogil=True)(function)
    kernel._cache = SharedCache(function)  # type: ignore[no-untyped-call]
    return cast(F, kernel)


def inlined(function: F) -> F:
    """Compile a small function into each kernel that calls it."""
    return cast(F, numba.njit(inline="always")(function))
