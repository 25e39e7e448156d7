"""Counter-based random numbers: a draw is a function of its keys, never of what was drawn before or elsewhere."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

BIN, SAMPLE, RATIO, PROMPT, MASK = (np.uint64(purpose) for purpose in range(1, 6))
"""Purposes of draws for one cell; each has a stream of its own, so that one never shifts another."""

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_TO_UNIT = 1.0 / (1 << 53)


@numba.njit(inline="always")
def mix(x: Any) -> Any:
    """Return the finaliser of splitmix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@numba.njit(inline="always")
def stream(seed: Any, epoch: Any, cell: Any, purpose: Any) -> Any:
    """Return the start of the stream that belongs to (seed, epoch, cell, purpose)."""
    x = mix(np.uint64(seed) + _GAMMA)
    x = mix(x ^ (np.uint64(epoch) * _GAMMA))
    x = mix(x ^ np.uint64(cell))
    return mix(x + purpose * _GAMMA)


@numba.njit(inline="always")
def uniform(state: Any, counter: Any) -> Any:
    """Return draw number `counter` of a stream, uniform in [0, 1)."""
    bits = mix(state + (np.uint64(counter) + np.uint64(1)) * _GAMMA)
    return np.float64(bits >> np.uint64(11)) * _TO_UNIT
