"""The order of an epoch: runs of neighbouring cells from all shards, spread evenly over the epoch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from cellmill.stream import chance

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Pieces:
    """Ranges of selected cells, one after the other.

    Attributes
    ----------
    shard : int64 [k]
        Which shard.
    begin, length : int64 [k]
        The first cell, counted among the shard's selected cells, and how many.
    """

    shard: I64
    begin: I64
    length: I64


@dataclass(frozen=True)
class EpochOrder:
    """All selected cells of an atlas in the order of one epoch, as runs.

    Each shard is cut into runs of at least `run` cells, at a random phase (the run that crosses the end of the shard
    goes on at its beginning). The runs of a shard are put in random order and spread evenly over the epoch, with
    jitter: every stretch of the epoch holds every shard in proportion, up to one run. That is less variance than a
    plain permutation of runs has, and what makes batches well mixed however the atlas was put together.

    Attributes
    ----------
    counts : int64 [shards]
        Selected cells of each shard.
    shard, begin, length : int64 [runs]
        The runs, in order; `begin` + `length` may exceed the shard's count, see above.
    """

    counts: I64
    shard: I64
    begin: I64
    length: I64

    @cached_property
    def offset(self) -> I64:
        """Where each run begins in the epoch, int64 [runs + 1]."""
        return np.concatenate([[0], np.cumsum(self.length)])

    def pieces(self, start: int, stop: int) -> Pieces:
        """Return the cells that stand at `start` up to, not including, `stop` of the epoch."""
        first = int(np.searchsorted(self.offset, start, side="right")) - 1
        last = int(np.searchsorted(self.offset, stop, side="left"))
        shard, begin = self.shard[first:last], self.begin[first:last].copy()
        length = self.length[first:last].copy()
        if not length.size:
            return Pieces(shard, begin, length)
        skipped = start - self.offset[first]
        begin[0] += skipped
        length[0] -= skipped
        length[-1] -= self.offset[last] - stop
        return _unwrap(shard, begin, length, self.counts[shard])


def epoch_order(counts: I64, *, run: int, seed: int, epoch: int) -> EpochOrder:
    """Return the order of an epoch, a pure function of its arguments.

    Parameters
    ----------
    counts : int64 [shards]
        Selected cells of each shard, each above zero.
    run
        Cells of a run, at least; a shard with fewer is one run. No run has twice as many.
    seed, epoch
        Keys of the order.
    """
    n_runs = np.maximum(counts // run, 1)
    first = np.concatenate([[0], np.cumsum(n_runs)])
    total = int(first[-1])
    shard = np.repeat(np.arange(counts.size, dtype=np.int64), n_runs)
    within = np.arange(total, dtype=np.int64) - first[shard]
    size, pieces = counts[shard], n_runs[shard]
    # Cut points at (j + phase) * size / pieces, in integers: exact at any size.
    phase = (chance.draws(chance.key(seed, epoch, chance.PHASE), counts.size) >> np.uint64(44)).astype(np.int64)[shard]
    begin = _cut(within, phase, size, pieces)
    length = _cut(within + 1, phase, size, pieces) - begin
    # Random rank of each run within its shard, then its place in the epoch.
    lottery = chance.draws(chance.key(seed, epoch, chance.RUNS), total)
    drawn = np.lexsort((lottery, shard))
    rank = np.empty(total, np.int64)
    rank[drawn] = within
    place = (rank + chance.uniform(chance.key(seed, epoch, chance.JITTER), total)) / pieces
    order = np.argsort(place, kind="stable")
    return EpochOrder(counts=counts, shard=shard[order], begin=begin[order], length=length[order])


def _cut(j: I64, phase: I64, size: I64, pieces: I64) -> I64:
    # size / pieces < 2**21 for any run below a million cells, so that nothing overflows.
    whole, part = size // pieces, size % pieces
    return j * whole + (j * part) // pieces + (phase * whole >> 20)


def _unwrap(shard: I64, begin: I64, length: I64, size: I64) -> Pieces:
    """Cut the pieces that cross the end of their shard in two."""
    past = begin >= size
    begin = np.where(past, begin - size, begin)
    over = begin + length - size
    crossing = np.flatnonzero(over > 0)
    if not crossing.size:
        return Pieces(shard, begin, length)
    length = length.copy()
    length[crossing] -= over[crossing]
    at = crossing + 1
    return Pieces(np.insert(shard, at, shard[crossing]), np.insert(begin, at, 0), np.insert(length, at, over[crossing]))
