"""Small kernels beside those of tokenisation: how many genes a cell will have, and which tokens are generative."""

from __future__ import annotations

from typing import Any

from cellmill.atlas.jit import compiled

DROPPED = 255
"""Rank of a token that is not in the panel. Lower ranks are sampled first, ranks are 0 to 3."""


@compiled
def count_candidates(token: Any, indptr: Any, rank: Any, other_rank: Any, out: Any) -> None:
    """Count the entries of each cell that are in the panel."""
    for i in range(out.size):
        n = 0
        for j in range(indptr[i], indptr[i + 1]):
            t = token[j]
            n += (rank[t] if t < rank.size else other_rank) != DROPPED
        out[i] = n


@compiled
def mark_generative(cu_seqlens: Any, n_pcpt: Any, out: Any) -> None:
    """Mark the generative tokens of each cell."""
    for cell in range(n_pcpt.size):
        middle = cu_seqlens[cell] + n_pcpt[cell]
        for i in range(cu_seqlens[cell], cu_seqlens[cell + 1]):
            out[i] = i >= middle
