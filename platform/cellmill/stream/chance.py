"""Counter-based random numbers for plans: every number is a function of its keys alone, on any machine."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]

RUNS, PHASE, JITTER, WINDOW, DRAW = range(1, 6)
"""What a number is for; each purpose has numbers of its own."""

_GAMMA = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def key(*parts: int) -> int:
    """Return a 64-bit key that depends on every part and on their order."""
    state = 0
    for part in parts:
        state = _mix((state ^ _mix((part + 1) * _GAMMA & _MASK)) + _GAMMA & _MASK)
    return state


def draws(state: int, n: int) -> U64:
    """Return n numbers of a key's stream, uniform over 64 bits (splitmix64: Steele, Lea and Flood 2014).

    The stream is a bijection of the counter: no number occurs twice, so sorting them has no ties.
    """
    x = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(_GAMMA) + np.uint64(state)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniform(state: int, n: int) -> npt.NDArray[np.float64]:
    """Return n numbers of a key's stream in [0, 1), float64 [n]."""
    return (draws(state, n) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(state: int, n: int) -> npt.NDArray[np.int64]:
    """Return a random order of 0 .. n - 1, int64 [n]."""
    return np.argsort(draws(state, n)).astype(np.int64, copy=False)


def _mix(x: int) -> int:
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _MASK
    return x ^ (x >> 31)
