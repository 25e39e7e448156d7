"""Plans that do not take every cell once: weighted and class-balanced draws, and sets of cells that are alike.

An epoch still is a pure function of its keys. Each shard gives a list of *draws*, positions among its selected cells,
and everything that deals, reads and resumes works on draws as it does on cells.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from cellmill.config import Config
from cellmill.stream import chance

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]


class BalancedSampling(Config):
    """Every class is drawn equally often; cells without a class are not drawn.

    From each shard a class is drawn as often as its share of the class is worth, rounded up or down; so the classes of
    an atlas of one shard differ by one draw at most, and else by about the root of the number of shards.

    Attributes
    ----------
    by
        Column with the classes.
    epoch_cells
        Draws of an epoch; as many as there are cells by default.
    """

    kind: Literal["balanced"] = "balanced"
    by: str
    epoch_cells: int | None = Field(default=None, ge=1)


class WeightedSampling(Config):
    """Cells are drawn in proportion to weights.

    Attributes
    ----------
    by
        Column with the classes, or with the weights themselves where `weights` is empty.
    weights
        Weight of a cell by class; cells of other classes, or of none, are not drawn.
    epoch_cells
        Draws of an epoch; as many as there are cells by default.
    """

    kind: Literal["weighted"] = "weighted"
    by: str
    weights: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(default_factory=dict)
    epoch_cells: int | None = Field(default=None, ge=1)


class SetSampling(Config):
    """Cells come in sets of equal size that share all of some columns, for instance cell type and perturbation.

    A set is drawn from one shard, without a cell twice while there are enough; the last set of a group is filled up
    with cells of the same group. Cells without a value, and groups of fewer than `min_cells` in a shard, are left out.

    Attributes
    ----------
    by
        Columns whose values the cells of a set share.
    size
        Cells of a set.
    min_cells
        Smallest group, in a shard, that sets are drawn from.
    """

    kind: Literal["sets"] = "sets"
    by: tuple[str, ...] = Field(min_length=1)
    size: int = Field(ge=2)
    min_cells: int = Field(default=1, ge=1)


Sampling = Annotated[BalancedSampling | WeightedSampling | SetSampling, Field(discriminator="kind")]


def share_out(weights: F64, total: int, phase: float) -> I64:
    """Return how often each of some things is drawn, by systematic sampling: int64 [n], of the sum `total`.

    Each is drawn ``total * weight / sum(weights)`` times, rounded up or down so that the expectation over `phase`,
    uniform in [0, 1), is exact (Madow 1949).

    Parameters
    ----------
    weights : float64 [n]
        Not negative, not all zero unless `total` is zero.
    total
        Number of draws.
    phase
        In [0, 1).
    """
    whole = np.cumsum(weights, dtype=np.float64)
    if not total or not whole.size or whole[-1] <= 0:
        return np.zeros(weights.size, np.int64)
    edges = np.floor(whole * (total / whole[-1]) + phase).astype(np.int64)
    # What rounding of sums could add or take is given to the last that may be drawn at all.
    last = int(np.flatnonzero(weights > 0)[-1])
    edges[last:] = total
    times: I64 = np.diff(np.minimum(edges, total), prepend=0)
    return times


def draw_cells(weights: F64, total: int, *, seed: int, epoch: int, shard: int, classes: I32 | None = None) -> I64:
    """Return the draws of one shard in ascending order, cells that are drawn several times next to each other.

    Parameters
    ----------
    weights : float64 [n]
        Of the shard's selected cells.
    total
        Number of draws.
    seed, epoch, shard
        Keys of chance.
    classes : int32 [n], optional
        Of the cells, those of one class having one weight; by default cells of one weight are a class.

    Returns
    -------
    int64 [total]
        Positions among the selected cells.
    """
    key = chance.key(seed, epoch, chance.DRAW, shard)
    # In a random order, so that neighbours are not drawn together or in turn; but cells of one class side by side, so
    # that each class gets its share of every shard, and not only in the long run.
    order = chance.permutation(key, weights.size)
    keys = (weights[order],) if classes is None else (classes[order], weights[order])
    order = order[np.lexsort(keys)]
    phase = float(chance.uniform(chance.key(key, 0), 1)[0])
    times = np.empty(weights.size, np.int64)
    times[order] = share_out(weights[order], total, phase)
    return np.repeat(np.arange(weights.size, dtype=np.int64), times)


def copies(draws: I64) -> I64:
    """Return, of each draw, how often its cell was drawn before it, for draws in which equal cells are neighbours."""
    if not draws.size:
        return draws
    first = np.concatenate([[True], draws[1:] != draws[:-1]])
    start = np.flatnonzero(first)
    return np.arange(draws.size) - np.repeat(start, np.diff(np.append(start, draws.size)))


def n_sets(groups: I32, size: int, min_cells: int) -> int:
    """Return how many sets a shard gives.

    Parameters
    ----------
    groups : int32 [n]
        Group of each selected cell, -1 for none.
    size, min_cells
        See `SetSampling`.
    """
    counts = np.bincount(groups[groups >= 0]) if groups.size else np.zeros(0, np.int64)
    return int((-(-counts[counts >= min_cells] // size)).sum())


def draw_sets(groups: I32, size: int, min_cells: int, *, seed: int, epoch: int, shard: int) -> tuple[I64, I64]:
    """Return the sets of one shard in random order.

    Parameters
    ----------
    groups : int32 [n]
        Group of each selected cell, -1 for none.
    size, min_cells
        See `SetSampling`.
    seed, epoch, shard
        Keys of chance.

    Returns
    -------
    draws : int64 [sets * size]
        Positions among the selected cells, set after set.
    copies : int64 [sets * size]
        How often the cell was drawn before.
    """
    key = chance.key(seed, epoch, chance.DRAW, shard)
    order = chance.permutation(key, groups.size)
    order = order[np.argsort(groups[order], kind="stable")]
    sorted_groups = groups[order]
    values, starts, counts = np.unique(sorted_groups, return_index=True, return_counts=True)
    kept = (values >= 0) & (counts >= min_cells)
    parts, repeats = [], []
    for start, count in zip(starts[kept].tolist(), counts[kept].tolist(), strict=True):
        place = np.arange(-(-count // size) * size)
        parts.append(order[start + place % count])
        repeats.append(place // count)
    if not parts:
        none = np.zeros(0, np.int64)
        return none, none
    draws, again = np.concatenate(parts).reshape(-1, size), np.concatenate(repeats).reshape(-1, size)
    shuffled = chance.permutation(chance.key(key, 1), len(draws))
    return draws[shuffled].ravel(), again[shuffled].ravel()
