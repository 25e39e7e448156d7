"""Micro-batches: the cells of a step, in parts of about equal numbers of tokens."""

from __future__ import annotations

import heapq

import numpy as np
import numpy.typing as npt

from cellmill.errors import ConfigError

I64 = npt.NDArray[np.int64]


_UNEVEN = 0.99
"""Least share of the places in full parts that are taken, where up to half as many parts more can give it."""


def micro_batch_count(cells: int, longest: int, capacity: int) -> int:
    """Return into how many parts `split_cells` cuts a step so that none exceeds the capacity.

    It depends on bounds alone, so every rank comes to the same number. Cells that have as many tokens as they can have,
    as most do, are shared evenly only by numbers of parts that almost divide them: where up to half as many parts more
    do, they are taken (256 cells of which 54 fit in a pass: 6 parts of 43 at most, not 5 of 52 at most).

    Parameters
    ----------
    cells
        Cells of a step on one rank, or sets of cells that stay together, at most.
    longest
        Tokens of a cell, or of a set, at most, ``<cls>`` included.
    capacity
        Tokens of one forward pass, at most.

    Raises
    ------
    ConfigError
        One cell alone exceeds the capacity.
    """
    if longest > capacity:
        raise ConfigError(
            f"A cell, or a set of cells, can have {longest:,} tokens, but one forward pass may hold {capacity:,}.",
            where="token_capacity",
            fix="Raise token_capacity, or lower tokens.max_genes.",
        )
    least = max(1, -(-cells // (capacity // longest)))

    def taken(parts: int) -> float:
        return cells / (parts * -(-cells // parts))

    candidates = range(least, max(least, min(cells, least + least // 2)) + 1)
    even = (parts for parts in candidates if cells and taken(parts) >= _UNEVEN)
    return next(even, least)


def split_cells(lengths: I64, parts: int) -> list[I64]:
    """Return the cells of each part, ascending.

    Cells are dealt, longest first, each to the part with fewest tokens among those that are not full; a part is full
    with ``ceil(cells / parts)`` cells, so no part exceeds that many times the longest cell.

    Parameters
    ----------
    lengths : int64 [n]
        Tokens of each cell.
    parts
        Number of parts; some are empty if there are fewer cells.

    Returns
    -------
    list of int64
        `parts` arrays; together they hold every cell once.
    """
    full = -(-lengths.size // parts) if lengths.size else 0
    taken: list[list[int]] = [[] for _ in range(parts)]
    heap = [(0, part) for part in range(parts)]
    for cell in np.argsort(-lengths, kind="stable").tolist():
        tokens, part = heapq.heappop(heap)
        taken[part].append(cell)
        if len(taken[part]) < full:
            heapq.heappush(heap, (tokens + int(lengths[cell]), part))
    return [np.array(sorted(cells), dtype=np.int64) for cells in taken]


def waste(tokens: I64) -> float:
    """Return the share of time in which workers that step together wait for the one with most tokens: 0 for none.

    Time is taken to be that of the tokens, and every pass to take as long as its longest.

    Parameters
    ----------
    tokens : int64 [passes, workers]
        Of each forward pass; or of the micro-batches of a worker, one after the other, in place of workers.
    """
    spent = tokens.shape[1] * int(tokens.max(axis=1).sum())
    return 1 - int(tokens.sum()) / spent if spent else 0.0


def straggler_ratio(tokens: I64) -> float:
    """Return how many times as long as the mean worker the slowest takes, over all steps: 1 if none waits.

    Parameters
    ----------
    tokens : int64 [steps, workers]
        Of each step.
    """
    total = int(tokens.sum())
    return tokens.shape[1] * int(tokens.max(axis=1).sum()) / total if total else 1.0
