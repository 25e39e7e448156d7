"""How evenly the tokens of steps are shared: among workers, and among the forward passes of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count

import numpy as np
import numpy.typing as npt

from cellmill.config import Config
from cellmill.stream.balance import micro_batch_count, split_cells, straggler_ratio, unused
from cellmill.stream.plan import EpochPlan
from cellmill.stream.stream import Stream

I64 = npt.NDArray[np.int64]


class Sharing(Config):
    """How a number of workers share the cells of the steps.

    Attributes
    ----------
    workers
        How many.
    micro_batches
        Forward passes of a step, on average.
    straggler_ratio
        How many times as many tokens as the mean worker the one with most has, over all steps.
    waste
        Share of time lost by passes that are shorter than the longest of their step on the same worker.
    """

    workers: int
    micro_batches: float
    straggler_ratio: float
    waste: float


def shared(stream: Stream, workers: int, tokens: Iterable[I64], *, capacity: int) -> Sharing:
    """Return how several workers would share the first steps of a stream, by the lengths of their cells.

    Parameters
    ----------
    stream
        Of one worker, with at least as many lanes as there are to be workers.
    workers
        How many there are to be.
    tokens : int64 [cells] each
        Tokens of the cells of each global batch, from the beginning of the first epoch on. Batches that lack cells of
        damaged shards are left out.
    capacity
        Tokens of a forward pass, at most.

    Raises
    ------
    ConfigError
        One cell, or set of cells, alone exceeds the capacity.
    """
    steps: list[list[int]] = []
    passes: list[I64] = []
    for (plan, taken), lengths in zip(_steps(stream), tokens, strict=False):
        units = lengths.reshape(-1, stream.unit).sum(axis=1)
        rank = _ranks(plan, workers)[places_of_step(plan, taken)]
        if rank.size != units.size:
            continue
        own = [units[rank == number] for number in range(workers)]
        steps.append([int(cells.sum()) for cells in own])
        parts = max(micro_batch_count(cells, capacity) for cells in own)
        cut = [[int(cells[part].sum()) for part in split_cells(cells, parts, capacity)] for cells in own]
        passes.append(np.array(cut, np.int64))
    return Sharing(
        workers=workers,
        micro_batches=sum(step.shape[1] for step in passes) / max(len(passes), 1),
        straggler_ratio=straggler_ratio(np.array(steps, np.int64)),
        waste=unused(passes),
    )


def places_of_step(plan: EpochPlan, taken: int) -> I64:
    """Return the place of the lane of each cell of a global batch, in the order of one worker: int64 [cells].

    Parameters
    ----------
    plan
        Of the epoch.
    taken
        Cells that each lane has given before the step.
    """
    low, high = np.minimum(taken, plan.lengths), np.minimum(taken + plan.share, plan.lengths)
    first = max(0, taken // plan.width - 1)
    last = min(plan.n_windows, (taken + plan.share) // plan.width + 2)
    parts = [np.zeros(0, np.int64)]
    for window in range(first, last):
        cells = np.minimum(plan.bounds(window + 1), high) - np.maximum(plan.bounds(window), low)
        parts.append(np.repeat(np.arange(plan.lanes), np.maximum(cells, 0)))
    return np.concatenate(parts)


def _ranks(plan: EpochPlan, workers: int) -> I64:
    """Return the worker that owns the lane at each place, int64 [lanes]."""
    rank = np.empty(plan.lanes, np.int64)
    for number in range(workers):
        rank[plan.places(number, workers)] = number
    return rank


def _steps(stream: Stream) -> Iterator[tuple[EpochPlan, int]]:
    """Yield the plan and the cells taken before each step, epoch after epoch."""
    for plan in map(stream.plan, count()):
        for step in range(plan.steps()):
            yield plan, step * plan.share
