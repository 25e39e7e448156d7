"""Compiling numeric kernels with numba, with their types kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., object])


def compiled(function: F) -> F:
    """Compile a kernel to machine code, once a machine; it runs without the interpreter's lock."""
    return cast(F, numba.njit(nogil=True, cache=True)(function))


def inlined(function: F) -> F:
    """Compile a small function into each kernel that calls it."""
    return cast(F, numba.njit(inline="always")(function))
