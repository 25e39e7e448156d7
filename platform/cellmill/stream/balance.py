"""Micro-batches: the cells of a step, in parts of about equal numbers of tokens."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cellmill.atlas.jit import compiled
from cellmill.errors import ConfigError

I64 = npt.NDArray[np.int64]


_UNEVEN = 0.01
"""Largest waste that is borne, where up to half as many parts more avoid it."""


def micro_batch_count(lengths: I64, capacity: int) -> int:
    """Return into how many parts a worker's cells of a step should be cut, so that none exceeds the capacity.

    It is the least number that `split_cells` can do with, but where up to half as many parts more waste less than a
    hundredth, these are taken: cells of equal length are shared evenly only by numbers that almost divide them (256
    cells of which 54 fit in a pass: 6 parts of 43 at most, not 5 of 52 at most).

    Parameters
    ----------
    lengths : int64 [n]
        Tokens of each cell, ``<cls>`` included, or of each set of cells that stay together.
    capacity
        Tokens of one forward pass, at most.

    Raises
    ------
    ConfigError
        One cell alone exceeds the capacity.
    """
    if not lengths.size:
        return 1
    check_capacity(int(lengths.max()), capacity)
    total, order = int(lengths.sum()), _longest_first(lengths)

    def heaviest(parts: int) -> int:
        return int(_deal(lengths, order, parts)[1].max())

    least = -(-total // capacity)
    while heaviest(least) > capacity:
        least += 1
    candidates = range(least, least + least // 2 + 1)
    return next((n for n in candidates if total >= (1 - _UNEVEN) * n * heaviest(n)), least)


def check_capacity(longest: int, capacity: int) -> None:
    """Refuse a capacity that one cell alone exceeds.

    Parameters
    ----------
    longest
        Tokens of a cell, or of a set of cells that stay together, at most.
    capacity
        Tokens of one forward pass, at most.

    Raises
    ------
    ConfigError
        It does.
    """
    if longest > capacity:
        raise ConfigError(
            f"A cell, or a set of cells, can have {longest:,} tokens, but one forward pass may hold {capacity:,}.",
            where="token_capacity",
            fix="Raise token_capacity, or lower tokens.max_genes.",
        )


def split_cells(lengths: I64, parts: int, capacity: int) -> list[I64]:
    """Return the cells of each part, ascending.

    Cells are dealt, longest first, each to the part with fewest tokens; then the fullest part gives a cell away, or
    changes one for a shorter one, as long as that makes it lighter. Should one be too full all the same, which fewer
    parts may avoid, some parts are left empty: any number from `micro_batch_count` on will do.

    Parameters
    ----------
    lengths : int64 [n]
        Tokens of each cell.
    parts
        Number of parts; some are empty if there are fewer cells.
    capacity
        Tokens of a part, at most.

    Returns
    -------
    list of int64
        `parts` arrays; together they hold every cell once.

    Raises
    ------
    ConfigError
        The parts are too few.
    """
    order = _longest_first(lengths)
    for used in range(parts, 0, -1):
        part, tokens = _deal(lengths, order, used)
        if int(tokens.max()) <= capacity:
            by_part = np.argsort(part, kind="stable")
            return np.split(by_part, np.searchsorted(part[by_part], np.arange(1, parts)))
    raise ConfigError(
        f"{int(lengths.sum()):,} tokens do not fit in {parts} forward passes of {capacity:,}.",
        where="token_capacity",
        fix="Raise token_capacity.",
    )


def waste(tokens: I64) -> float:
    """Return the share of time in which workers that step together wait for the one with most tokens: 0 for none.

    Time is taken to be that of the tokens, and every pass to take as long as its longest.

    Parameters
    ----------
    tokens : int64 [passes, workers]
        Of each forward pass; or of the micro-batches of a worker, one after the other, in place of workers.
    """
    return unused([tokens])


def unused(steps: list[I64]) -> float:
    """Return `waste` over steps that differ in their number of micro-batches, each int64 [passes, workers]."""
    spent = sum(step.shape[1] * int(step.max(axis=1).sum()) for step in steps if step.size)
    return 1 - sum(int(step.sum()) for step in steps) / spent if spent else 0.0


def straggler_ratio(tokens: I64) -> float:
    """Return how many times as long as the mean worker the slowest takes, over all steps: 1 if none waits.

    Parameters
    ----------
    tokens : int64 [steps, workers]
        Of each step.
    """
    total = int(tokens.sum())
    return tokens.shape[1] * int(tokens.max(axis=1).sum()) / total if total else 1.0


def _longest_first(lengths: I64) -> I64:
    return np.argsort(-lengths, kind="stable")


@compiled
def _deal(lengths: I64, order: I64, parts: int) -> tuple[I64, I64]:
    """Return the part of each cell, and the tokens of each part."""
    part = np.empty(lengths.size, np.int64)
    tokens = np.zeros(parts, np.int64)
    for cell in order:
        lightest = np.argmin(tokens)
        part[cell] = lightest
        tokens[lightest] += lengths[cell]
    while _relieve(lengths, part, tokens):
        pass
    return part, tokens


@compiled
def _relieve(lengths: I64, part: I64, tokens: I64) -> bool:
    """Make the fullest part lighter by one cell that moves or changes places; return False where none can."""
    full, light = np.argmax(tokens), np.argmin(tokens)
    least, mine, other, shift, to = tokens[full], -1, -1, np.int64(0), light
    for a in range(lengths.size):
        if part[a] != full:
            continue
        after = max(tokens[full] - lengths[a], tokens[light] + lengths[a])
        if after < least:
            least, mine, other, shift, to = after, a, -1, lengths[a], light
        for b in range(lengths.size):
            less = lengths[a] - lengths[b]
            if less <= 0 or part[b] == full:
                continue
            after = max(tokens[full] - less, tokens[part[b]] + less)
            if after < least:
                least, mine, other, shift, to = after, a, b, less, part[b]
    if mine < 0:
        return False
    part[mine] = to
    if other >= 0:
        part[other] = full
    tokens[full] -= shift
    tokens[to] += shift
    return True
