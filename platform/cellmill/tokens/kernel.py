"""The inner loop of tokenisation: candidates, values, sample, prompt and mask of each cell in one pass."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from cellmill.tokens.binning import N_SMALL, bin_any, bin_small
from cellmill.tokens.random import BIN, MASK, PROMPT, RATIO, SAMPLE, stream, uniform

BINS, MIDRANK, LOG1P = 0, 1, 2
CLS = 1


@numba.njit(cache=True, nogil=True)
def count_genes(indptr: Any, token: Any, place: Any, n_panel: Any, zeros: Any, max_genes: Any) -> Any:
    """Return how many genes each cell will have.

    Parameters
    ----------
    indptr, token
        The block.
    place : int32 [tokens]
        Place of each token in the panel, -1 outside; empty if there is no panel.
    n_panel
        Genes of the panel.
    zeros
        Whether all genes of the panel become tokens.
    max_genes
        Genes of a cell at most.

    Returns
    -------
    int64 [n]
    """
    n = len(indptr) - 1
    out = np.empty(n, np.int64)
    for cell in range(n):
        if zeros:
            genes = n_panel
        elif len(place) == 0:
            genes = indptr[cell + 1] - indptr[cell]
        else:
            genes = 0
            for i in range(indptr[cell], indptr[cell + 1]):
                t = token[i]
                if t < len(place) and place[t] >= 0:
                    genes += 1
        out[cell] = min(genes, max_genes)
    return out


@numba.njit(cache=True, nogil=True)
def choose(n: Any, k: Any, state: Any, offset: Any, chosen: Any) -> None:
    """Mark k of n positions, each subset equally likely (selection sampling, Knuth's algorithm S)."""
    left = k
    for i in range(n):
        take = left > 0 and uniform(state, offset + i) * (n - i) < left
        chosen[i] = take
        if take:
            left -= 1


@numba.njit(cache=True, nogil=True)
def tokenise_cells(
    indptr: Any,
    token: Any,
    count: Any,
    cell_id: Any,
    place: Any,
    panel: Any,
    zeros: Any,
    expressed_first: Any,
    mode: Any,
    n_bins: Any,
    target_sum: Any,
    ratios: Any,
    mask_ratio: Any,
    seed: Any,
    epoch: Any,
    cu_seqlens: Any,
    gene: Any,
    value: Any,
    is_gen: Any,
    masked: Any,
    n_pcpt: Any,
) -> None:
    """Fill the channels of a packed batch; see `cellmill.tokens.Tokeniser` for what they mean.

    Cells are independent of each other: every random number is keyed by (seed, epoch, cell id) and a purpose.
    """
    n_cells = len(cell_id)
    longest = len(panel)
    for cell in range(n_cells):
        longest = max(longest, indptr[cell + 1] - indptr[cell])
    tokens = np.empty(longest, np.int64)
    counts = np.empty(longest, count.dtype)
    values = np.empty(longest, value.dtype)
    expressed = np.empty(longest, np.bool_)
    chosen = np.empty(longest, np.bool_)
    generate = np.empty(longest, np.bool_)
    below = np.empty(N_SMALL, np.int64)
    upto = np.empty(N_SMALL, np.int64)
    for cell in range(n_cells):
        key = cell_id[cell]
        # Candidates that are expressed, in the order of the shard.
        n = 0
        total = 0.0
        largest = count.dtype.type(0)
        for i in range(indptr[cell], indptr[cell + 1]):
            total += count[i]
            t = token[i]
            if len(place) == 0 or (t < len(place) and place[t] >= 0):
                tokens[n] = t
                counts[n] = count[i]
                largest = max(largest, count[i])
                n += 1
        # Their values.
        if n > 0:
            if mode == LOG1P:
                scale = target_sum / total if target_sum > 0.0 and total > 0.0 else 1.0
                for i in range(n):
                    values[i] = np.log1p(counts[i] * scale)
            else:
                state = stream(seed, epoch, key, BIN)
                if integer_and_small(counts, largest):
                    bin_small(counts, n, n_bins, state, mode == BINS, below, upto, values)
                else:
                    bin_any(counts, n, n_bins, state, mode == BINS, values)
        # Zeros join after binning: they are no part of the quantiles.
        n_expressed = n
        for i in range(n):
            expressed[i] = True
        if zeros:
            n = add_zeros(tokens, values, expressed, n, place, panel)
        # A sample of them.
        m = n
        start = cu_seqlens[cell]
        keep = cu_seqlens[cell + 1] - start - 1
        if keep < n:
            state = stream(seed, epoch, key, SAMPLE)
            if expressed_first and zeros:
                choose_expressed(expressed, n, n_expressed, keep, state, chosen)
            else:
                choose(n, keep, state, 0, chosen)
            m = 0
            for i in range(n):
                if chosen[i]:
                    tokens[m] = tokens[i]
                    values[m] = values[i]
                    m += 1
            n = m
        # Which of them are to be generated.
        n_gen = np.int64(0)
        if len(ratios) > 0:
            pick = np.int64(uniform(stream(seed, epoch, key, RATIO), 0) * len(ratios))
            n_gen = np.int64(n * ratios[pick])
            choose(n, n_gen, stream(seed, epoch, key, PROMPT), 0, generate)
        gene[start] = CLS
        value[start] = 0
        is_gen[start] = False
        at_pcpt = start + 1
        at_gen = start + 1 + n - n_gen
        n_pcpt[cell] = 1 + n - n_gen
        for i in range(n):
            if n_gen > 0 and generate[i]:
                at = at_gen
                at_gen += 1
                is_gen[at] = True
            else:
                at = at_pcpt
                at_pcpt += 1
                is_gen[at] = False
            gene[at] = tokens[i]
            value[at] = values[i]
        if len(masked) > 0:
            n_known = n - n_gen
            choose(n_known, np.int64(n_known * mask_ratio), stream(seed, epoch, key, MASK), 0, chosen)
            masked[start] = False
            for i in range(n):
                masked[start + 1 + i] = i < n_known and chosen[i]


@numba.njit(inline="always")
def integer_and_small(counts: Any, largest: Any) -> Any:
    """Return whether the histogram can be used: counts are integers below 256 by their dtype or largest value."""
    return counts.dtype.type(0.5) == counts.dtype.type(0) and largest < N_SMALL


@numba.njit(cache=True, nogil=True)
def add_zeros(tokens: Any, values: Any, expressed: Any, n: Any, place: Any, panel: Any) -> Any:
    """Put the whole panel in its own order, with zeros where a gene is not expressed; return its length."""
    n_panel = len(panel)
    full = np.zeros(n_panel, values.dtype)
    there = np.zeros(n_panel, np.bool_)
    for i in range(n):
        at = place[tokens[i]]
        full[at] = values[i]
        there[at] = True
    for i in range(n_panel):
        tokens[i] = panel[i]
        values[i] = full[i]
        expressed[i] = there[i]
    return n_panel


@numba.njit(cache=True, nogil=True)
def choose_expressed(expressed: Any, n: Any, n_expressed: Any, keep: Any, state: Any, chosen: Any) -> None:
    """Mark `keep` positions: a sample of the expressed if they are enough, else all of them and a sample of zeros."""
    wanted_expressed = min(n_expressed, keep)
    wanted_zero = keep - wanted_expressed
    left_expressed, left_zero = n_expressed, n - n_expressed
    for i in range(n):
        draw = uniform(state, i)
        if expressed[i]:
            take = draw * left_expressed < wanted_expressed
            left_expressed -= 1
            if take:
                wanted_expressed -= 1
        else:
            take = draw * left_zero < wanted_zero
            left_zero -= 1
            if take:
                wanted_zero -= 1
        chosen[i] = take
