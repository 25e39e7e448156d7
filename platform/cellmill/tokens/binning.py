"""Values of a cell: scGPT's quantile bins, with ties drawn or at mid-rank."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from cellmill.tokens.random import uniform

N_SMALL = 256
"""Counts below this are binned by a histogram instead of a sort."""


@numba.njit(inline="always")
def edge(sorted_low: Any, sorted_high: Any, fraction: Any) -> Any:
    """Return a quantile between two neighbours as `numpy.quantile` computes it (linear interpolation)."""
    step = sorted_high - sorted_low
    if fraction >= 0.5:
        return sorted_high - step * (1.0 - fraction)
    return sorted_low + step * fraction


@numba.njit(inline="always")
def draw(below: Any, upto: Any, state: Any, counter: Any, random_ties: Any) -> Any:
    """Return the bin of a value that equals ``upto - below`` edges.

    scGPT: ``ceil(u * (R - L) + L)`` with L = `upto` and R = `below`: uniform on below + 1 .. upto; the value's own bin
    where it equals no edge. At mid-rank the middle of that range.
    """
    ties = upto - below
    if ties <= 1:
        return upto
    if random_ties:
        return below + 1 + np.int64(uniform(state, counter) * ties)
    return below + (ties + 1) // 2


@numba.njit(cache=True, nogil=True)
def bin_small(counts: Any, n: Any, n_bins: Any, state: Any, random_ties: Any, below: Any, upto: Any, out: Any) -> None:
    """Bin one cell's counts, all of them in 1..255.

    Edges are quantiles at ``linspace(0, 1, n_bins - 1)``; since counts are integers, the edges at or below each
    distinct count are found once, from a histogram.

    Parameters
    ----------
    counts : integers [n]
    n, n_bins
        Number of values; number of bins, the zero bin included.
    state, random_ties
        Stream of the tie draws, and whether ties are drawn.
    below, upto : int64 [256]
        Scratch.
    out : uint8 or uint16 [n]
    """
    histogram = np.zeros(N_SMALL, np.int64)
    for i in range(n):
        histogram[counts[i]] += 1
    cumulative = np.zeros(N_SMALL + 1, np.int64)
    for v in range(N_SMALL):
        cumulative[v + 1] = cumulative[v] + histogram[v]
        below[v] = 0
        upto[v] = 0
    n_edges = n_bins - 1
    step = 1.0 / (n_edges - 1)
    low_value, high_value = 0, 0
    for k in range(n_edges):
        at = (1.0 if k == n_edges - 1 else k * step) * (n - 1)
        low = np.int64(np.floor(at))
        high = min(low + 1, n - 1)
        while cumulative[low_value + 1] <= low:
            low_value += 1
        high_value = max(high_value, low_value)
        while cumulative[high_value + 1] <= high:
            high_value += 1
        value = edge(np.float64(low_value), np.float64(high_value), at - low)
        first = np.int64(np.ceil(value))
        if first < N_SMALL:
            upto[first] += 1
        after = np.int64(np.floor(value)) + 1
        if after < N_SMALL:
            below[after] += 1
    for v in range(1, N_SMALL):
        upto[v] += upto[v - 1]
        below[v] += below[v - 1]
    for i in range(n):
        v = counts[i]
        out[i] = draw(below[v], upto[v], state, i, random_ties)


@numba.njit(cache=True, nogil=True)
def bin_any(values: Any, n: Any, n_bins: Any, state: Any, random_ties: Any, out: Any) -> None:
    """Bin one cell's positive values of any size, integers or floats; see `bin_small`."""
    ordered = np.sort(values[:n].astype(np.float64))
    n_edges = n_bins - 1
    step = 1.0 / (n_edges - 1)
    edges = np.empty(n_edges)
    for k in range(n_edges):
        at = (1.0 if k == n_edges - 1 else k * step) * (n - 1)
        low = np.int64(np.floor(at))
        edges[k] = edge(ordered[low], ordered[min(low + 1, n - 1)], at - low)
    for i in range(n):
        value = np.float64(values[i])
        below = np.searchsorted(edges, value, side="left")
        upto = np.searchsorted(edges, value, side="right")
        out[i] = draw(below, upto, state, i, random_ties)
