"""The plan of an epoch: lanes, windows and steps, as pure functions of what decides the order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from cellmill.errors import ConfigError
from cellmill.stream.runs import EpochOrder, epoch_order

I64 = npt.NDArray[np.int64]

MAX_LANES = 64
_SMALL_RUNS = 256
_SHORTEST_RUN = 16


@dataclass(frozen=True)
class Windows:
    """Consecutive windows of some lanes: what one data task makes.

    Attributes
    ----------
    first, last
        Windows ``first`` up to, not including, ``last``.
    places : int64 [k]
        Places of the lanes, ascending and consecutive among those of their rank.
    start
        Cells that a lane of the group has given at least before the group is needed.
    """

    first: int
    last: int
    places: I64
    start: int


@dataclass(frozen=True)
class EpochPlan:
    """Which cells stand in which step of an epoch.

    The epoch's order (see `epoch_order`) is cut into windows, and window after window is dealt to the lanes in turn.
    A lane's windows are shuffled one by one; the first window of a lane is shorter, the later the lane's turn, so
    that lanes do not all reach the end of a window in the same step. A step takes `share` cells from each lane.

    Lanes take their turn in bit-reversed order of their number: the lanes of a worker (those equal to its rank modulo
    the number of workers) then read neighbouring windows when both are powers of two, and long runs stay in one piece.

    Attributes
    ----------
    counts : int64 [shards]
        Selected cells of each shard, or sets of cells where these stay together, each above zero. Whatever is said of
        cells here holds for sets then.
    lanes, share
        Number of lanes, and cells that a step takes from each.
    window, run
        As configured; see `width`.
    seed, epoch
        Keys of the order.
    """

    counts: I64
    lanes: int
    share: int
    window: int
    run: int
    seed: int
    epoch: int

    @cached_property
    def n_cells(self) -> int:
        """Cells of the epoch."""
        return int(self.counts.sum())

    @cached_property
    def lengths(self) -> I64:
        """Cells of the lane at each place, int64 [lanes]; they differ by one at most."""
        place = np.arange(self.lanes + 1, dtype=np.int64)
        base, rest = divmod(self.n_cells, self.lanes)
        return base + np.diff(place * rest // self.lanes)

    @cached_property
    def longest(self) -> int:
        """Cells of the longest lane."""
        return int(self.lengths.max())

    @cached_property
    def width(self) -> int:
        """Cells of a window: such that the windows of a lane are about equal and nearest to `window`."""
        return max(1, -(-self.longest // self.windows_per_lane))

    @cached_property
    def windows_per_lane(self) -> int:
        """Windows of a lane, were none of them cut at the beginning of the epoch."""
        return max(1, round(self.longest / self.window))

    @cached_property
    def n_windows(self) -> int:
        """Windows of the lane that has most."""
        return 1 + -(-self.longest // self.width)

    @cached_property
    def order(self) -> EpochOrder:
        """The epoch's order of cells."""
        # Small atlases are read in small runs: it costs them nothing and mixes better.
        run = min(self.run, max(_SHORTEST_RUN, self.n_cells // _SMALL_RUNS), max(1, self.width // 2))
        return epoch_order(self.counts, run=run, seed=self.seed, epoch=self.epoch)

    def steps(self, taken: int = 0) -> int:
        """Return the steps that are left when each lane has given `taken` cells."""
        return max(0, -(-(self.longest - taken) // self.share))

    def bounds(self, window: int) -> I64:
        """Return where a window begins in the lane at each place, int64 [lanes]."""
        if window == 0:
            return np.zeros(self.lanes, np.int64)
        place = np.arange(self.lanes, dtype=np.int64)
        stagger = place * self.width // self.lanes if self.windows_per_lane > 1 else np.zeros_like(place)
        return np.minimum(stagger + (window - 1) * self.width, self.lengths)

    def place_of(self, lane: int) -> int:
        """Return a lane's place in the turn."""
        bits = self.lanes.bit_length() - 1
        if self.lanes != 1 << bits:
            return lane
        return int(f"{lane:0{bits}b}"[::-1], 2) if bits else 0

    def places(self, rank: int, world_size: int) -> I64:
        """Return the places of a worker's lanes, ascending, int64 [k]."""
        return np.array(sorted(self.place_of(lane) for lane in range(rank, self.lanes, world_size)), dtype=np.int64)

    def groups(self, rank: int, world_size: int, group_cells: int, taken: int = 0) -> Iterator[Windows]:
        """Yield what a worker needs, in the order it is needed.

        Parameters
        ----------
        rank, world_size
            The worker.
        group_cells
            Cells of a group, about; it decides how windows are fetched, never which.
        taken
            Cells that each lane has given already.
        """
        places = self.places(rank, world_size)
        if not places.size:
            return
        abreast = max(1, min(places.size, group_cells // self.width))
        # As many groups as that needs, of equal numbers of lanes.
        parts = np.array_split(places, -(-places.size // abreast))
        deep = max(1, group_cells // (abreast * self.width)) if len(parts) == 1 else 1
        for first in range(0, self.n_windows, deep):
            last = min(first + deep, self.n_windows)
            begin, end = self.bounds(first), self.bounds(last)
            for part in parts:
                needed = part[end[part] > np.maximum(begin[part], taken)]
                if needed.size:
                    yield Windows(first, last, part, int(begin[needed].min()))


def whole_sets(batch_size: int, size: int) -> int:
    """Return how many sets of `size` cells a global batch holds.

    Raises
    ------
    ConfigError
        The batch is not a multiple of the set.
    """
    if batch_size % size:
        raise ConfigError(
            f"A global batch of {batch_size} cells is not a multiple of sets of {size}.",
            where="stream.batch_size",
            fix=f"Set batch_size to {max(1, batch_size // size) * size}, or another multiple of {size}.",
        )
    return batch_size // size


def default_lanes(batch_size: int, world_size: int) -> int:
    """Return the number of lanes where none is configured.

    The largest divisor of the batch that is at most 64, whatever the number of workers; where the workers are more than
    that, the smallest divisor that gives each worker a lane.

    Raises
    ------
    ConfigError
        The batch has fewer cells than there are workers.
    """
    divisors = [lanes for lanes in range(1, batch_size + 1) if batch_size % lanes == 0]
    if (usual := max(lanes for lanes in divisors if lanes <= MAX_LANES)) >= world_size:
        return usual
    if divisors[-1] >= world_size:
        return next(lanes for lanes in divisors if lanes >= world_size)
    raise ConfigError(
        f"A global batch of {batch_size} cells cannot be shared by {world_size} workers.",
        where="stream.batch_size",
        fix="Use fewer workers or a larger batch.",
    )


def check_lanes(lanes: int, batch_size: int, world_size: int) -> None:
    """Refuse a number of lanes that does not fit the batch or the workers.

    Raises
    ------
    ConfigError
        The batch is not a multiple of the lanes, or there are more workers than lanes.
    """
    if batch_size % lanes:
        raise ConfigError(
            f"A global batch of {batch_size} cells is not a multiple of {lanes} lanes.",
            where="stream.lanes",
            fix=f"Set batch_size to a multiple of {lanes}, or lanes to a divisor of {batch_size}.",
        )
    if lanes < world_size:
        raise ConfigError(
            f"{lanes} lanes cannot be shared by {world_size} workers.",
            where="stream.lanes",
            fix="Use at most as many workers as lanes, or start anew with more lanes.",
        )
