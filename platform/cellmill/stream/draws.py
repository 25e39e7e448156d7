"""Which cells of each shard an epoch draws, and how often, where it is not every cell once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from cellmill.atlas import Selection
from cellmill.errors import ConfigError
from cellmill.stream import chance
from cellmill.stream.sampling import (
    BalancedSampling,
    Sampling,
    SetSampling,
    WeightedSampling,
    copies,
    draw_cells,
    draw_sets,
    n_sets,
    share_out,
)
from cellmill.stream.shard_columns import class_counts, codes

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]
_Weighed = tuple[F64, I32]
_Weigh = Callable[[pa.ChunkedArray], _Weighed]
_WHERE = "stream.sampling"


@dataclass(frozen=True)
class Drawn:
    """Draws of one shard in one epoch.

    Attributes
    ----------
    cells : int64 [n]
        Positions among the shard's selected cells, unit after unit.
    copies : int64 [n]
        How often each cell was drawn before in the epoch.
    """

    cells: I64
    copies: I64

    @property
    def nbytes(self) -> int:
        """Memory that they take."""
        return self.cells.nbytes + self.copies.nbytes


class Draws(Protocol):
    """What an epoch draws; a pure function of the selection, the configuration, the seed and the epoch."""

    @property
    def size(self) -> int:
        """Cells of a unit: what is drawn together stays together."""
        ...

    @property
    def left_out(self) -> int:
        """Selected cells that are never drawn."""
        ...

    def units(self, epoch: int) -> I64:
        """Return the units of each shard of the selection: int64 [shards]; their sum is the same in each epoch."""
        ...

    def draw(self, shard: int, epoch: int) -> Drawn:
        """Return the draws of a shard."""
        ...


class ByWeight:
    """Cells in proportion to weights.

    Parameters
    ----------
    selection
        The cells.
    column
        What weights are a function of.
    weigh
        Weight and class of each value of the column; all of one class where there are none.
    total
        Draws of an epoch.
    seed
        Key of chance.

    Raises
    ------
    ConfigError
        No cell has a weight, or one has a weight that is none.
    """

    size = 1

    def __init__(self, selection: Selection, column: str, weigh: _Weigh, total: int, seed: int) -> None:
        self._selection, self._column, self._weigh = selection, column, weigh
        self._total, self._seed = total, seed
        # Summed exactly: plans of ranks on unlike processors must agree to the last bit.
        pairs = [(math.fsum(w), np.count_nonzero(w == 0)) for w, _ in map(self._weighed, range(len(selection.shards)))]
        self._sums = np.array([total for total, _ in pairs], np.float64)
        self.left_out = int(sum(zeros for _, zeros in pairs))
        if not self._sums.sum() > 0:
            raise ConfigError("No selected cell has a weight above zero.", where=f"{_WHERE}.by: {column}")

    def units(self, epoch: int) -> I64:
        """Return the draws of each shard."""
        phase = float(chance.uniform(chance.key(self._seed, epoch, chance.DRAW), 1)[0])
        return share_out(self._sums, self._total, phase)

    def draw(self, shard: int, epoch: int) -> Drawn:
        """Return the draws of a shard, ascending."""
        total = int(self.units(epoch)[shard])
        weights, classes = self._weighed(shard)
        cells = draw_cells(weights, total, seed=self._seed, epoch=epoch, shard=shard, classes=classes)
        return Drawn(cells, copies(cells))

    def _weighed(self, shard: int) -> _Weighed:
        return self._weigh(self._selection.table(shard, [self._column]).column(0))


class InSets:
    """Sets of cells that share the values of some columns.

    Parameters
    ----------
    selection
        The cells.
    config
        Columns, size and smallest group.
    seed
        Key of chance.

    Raises
    ------
    ConfigError
        No group is large enough.
    """

    def __init__(self, selection: Selection, config: SetSampling, seed: int) -> None:
        self._selection, self._config, self._seed = selection, config, seed
        self.size = config.size
        pairs = [
            (n_sets(groups, config.size, config.min_cells), _left_out(groups, config.min_cells))
            for groups in map(self._groups, range(len(selection.shards)))
        ]
        self._units = np.array([n for n, _ in pairs], np.int64)
        self.left_out = sum(left_out for _, left_out in pairs)
        if not self._units.sum():
            raise ConfigError(
                f"No group of {' and '.join(config.by)} has {config.min_cells} cells in any shard.",
                where=f"{_WHERE}.min_cells",
                fix="Lower min_cells, or choose other columns.",
            )

    def units(self, epoch: int) -> I64:
        """Return the sets of each shard."""
        return self._units

    def draw(self, shard: int, epoch: int) -> Drawn:
        """Return the sets of a shard, one after the other."""
        config = self._config
        keys = {"seed": self._seed, "epoch": epoch, "shard": shard}
        return Drawn(*draw_sets(self._groups(shard), config.size, config.min_cells, **keys))

    def _groups(self, shard: int) -> I32:
        """Return the group of each selected cell of a shard, -1 where a value is missing."""
        table = self._selection.table(shard, list(self._config.by))
        frame = pd.DataFrame({name: table.column(name).to_pandas() for name in self._config.by})
        group = frame.groupby(list(self._config.by), sort=True, dropna=True, observed=True).ngroup()
        return group.fillna(-1).to_numpy().astype(np.int32)


def make_draws(selection: Selection, sampling: Sampling, seed: int) -> Draws:
    """Return what an epoch draws.

    Raises
    ------
    ConfigError
        A column does not exist, a class is not in it, or no cell can be drawn.
    """
    if isinstance(sampling, SetSampling):
        selection.snapshot.check_columns(sampling.by)
        return InSets(selection, sampling, seed)
    selection.snapshot.check_columns([sampling.by])
    total = sampling.epoch_cells or selection.n_cells
    return ByWeight(selection, sampling.by, _weigher(selection, sampling), total, seed)


def _weigher(selection: Selection, sampling: BalancedSampling | WeightedSampling) -> _Weigh:
    if isinstance(sampling, WeightedSampling) and not sampling.weights:
        return _own_weights
    counts = class_counts(selection, sampling.by)
    if isinstance(sampling, BalancedSampling):
        return _by_class({value: 1 / n for value, n in counts.items()})
    if unknown := [value for value in sampling.weights if value not in counts]:
        raise ConfigError(
            f"No selected cell has {sampling.by} {unknown[0]!r}.",
            where=f"{_WHERE}.weights",
            fix=f"There are: {', '.join(list(counts)[:20])}.",
        )
    return _by_class(sampling.weights)


def _by_class(weights: Mapping[str, float]) -> _Weigh:
    classes = list(weights)
    table = np.array([*weights.values(), 0.0])

    def weigh(column: pa.ChunkedArray) -> _Weighed:
        found = codes(column, classes)
        return table[found], found

    return weigh


def _own_weights(column: pa.ChunkedArray) -> _Weighed:
    if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type) or pa.types.is_null(column.type)):
        raise ConfigError(
            f"The column with weights holds {column.type}, not numbers.",
            where=f"{_WHERE}.by",
            fix="Give weights by class in `weights`, or name a column of numbers.",
        )
    found: F64 = pc.fill_null(pc.cast(column, pa.float64()), 0.0).to_numpy()
    if not (np.isfinite(found) & (found >= 0)).all():
        raise ConfigError("A weight is negative or not a number.", where=f"{_WHERE}.by")
    return found, np.zeros(found.size, np.int32)


def _left_out(groups: I32, min_cells: int) -> int:
    counts = np.bincount(groups[groups >= 0]) if groups.size else np.zeros(0, np.int64)
    return int(groups.size - counts[counts >= min_cells].sum())
