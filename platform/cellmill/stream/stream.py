"""The stream: a rank's cells of each global step, in the order of the plan, from any step on."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from cellmill.atlas import Selection
from cellmill.errors import ConfigError
from cellmill.stream.config import StreamConfig
from cellmill.stream.groups import Group, Grouping
from cellmill.stream.local import read_local
from cellmill.stream.micro import micro_batches
from cellmill.stream.plan import EpochPlan, choose_lanes, steps_per_epoch
from cellmill.stream.reader import GroupReader
from cellmill.tokens import PackedBatch, Tokeniser


class Stream:
    """Cells of a selection, tokenised, as one rank of several sees them.

    Parameters
    ----------
    selection
        The cells.
    tokeniser
        Makes tokens.
    config
        Batch, order, backend.
    rank, world_size
        This worker, and how many there are.
    labels
        Labels that travel with the cells: name to (column, classes); a value that is no class has code -1.

    Raises
    ------
    ConfigError
        The selection is empty, or the batch cannot be dealt to the lanes or the lanes to the workers.
    """

    def __init__(
        self,
        selection: Selection,
        tokeniser: Tokeniser,
        config: StreamConfig,
        *,
        rank: int = 0,
        world_size: int = 1,
        labels: Mapping[str, tuple[str, Sequence[str]]] | None = None,
    ) -> None:
        self._counts = selection.counts
        n_cells = int(self._counts.sum())
        if n_cells == 0:
            raise ConfigError(
                "No cell is selected.", where=f"where: {selection.where}", fix="See `cellmill atlas query`."
            )
        self.lanes = config.lanes or choose_lanes(n_cells, config.batch_size, world_size)
        if config.batch_size % self.lanes or self.lanes < world_size:
            raise ConfigError(
                f"{self.lanes} lanes fit neither a batch of {config.batch_size} cells nor {world_size} workers.",
                where="stream.lanes",
                fix="The batch must be a multiple of the lanes, and every worker needs at least one.",
            )
        self.config = config
        self._selection, self._rank, self._world_size = selection, rank, world_size
        self._reader = GroupReader(selection.snapshot.atlas.url, tokeniser, config.seed)
        self._labels = {name: selection.codes(column, classes) for name, (column, classes) in (labels or {}).items()}
        self._per_lane = config.batch_size // self.lanes
        self.n_cells = n_cells

    @property
    def steps_per_epoch(self) -> int:
        """Global steps of one pass over the cells, the same on every rank."""
        return steps_per_epoch(self.n_cells, self.lanes, self._per_lane)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[PackedBatch]:
        """Yield this rank's cells of each global step; the first is `start_step`.

        The last step of an epoch is short; a rank may then have few cells or none.

        Raises
        ------
        IntegrityError
            A shard is damaged; the stream stops.
        """
        config = self.config
        plan = EpochPlan(
            self._counts, seed=config.seed, epoch=epoch, lanes=self.lanes, window=config.window, run=config.run
        )
        lanes = list(range(self._rank, self.lanes, self._world_size))
        grouping = Grouping(self._selection, self._labels, plan, epoch, lanes, config.group_cells)
        first = start_step * self._per_lane // grouping.lane_cells
        source = self._groups(grouping, first)
        held: deque[_Held] = deque()
        loaded = first * grouping.lane_cells
        empty: PackedBatch | None = None
        for step in range(start_step, self.steps_per_epoch):
            low, high = step * self._per_lane, (step + 1) * self._per_lane
            while loaded < high and (found := next(source, None)) is not None:
                held.append(_Held(loaded, *found))
                loaded += grouping.lane_cells
            while held and held[0].start + grouping.lane_cells <= low:
                held.popleft()
            parts = [item.packed.select(cells) for item in held if len(cells := item.cells(low, high))]
            if parts:
                batch = parts[0] if len(parts) == 1 else PackedBatch.concatenate(parts)
                empty = batch.select(np.zeros(0, np.int64))
                yield batch
            else:
                if empty is None:
                    empty = self._empty()
                yield empty

    def micro_batches(self, packed: PackedBatch, parts: int) -> list[PackedBatch]:
        """Split a rank's cells of a step into exactly `parts` micro-batches of about equal numbers of tokens."""
        return micro_batches(packed, parts)

    def _groups(self, grouping: Grouping, first: int) -> Iterator[tuple[Group, PackedBatch]]:
        if self.config.backend == "local":
            return read_local(self._reader, grouping, first, self.config.prefetch)
        from cellmill.stream.ray_data import read_ray

        return read_ray(self._reader, grouping, first, self.config, self._world_size)

    def _empty(self) -> PackedBatch:
        names = {name: np.zeros(0, np.int32) for name in self._labels}
        return self._reader.empty(names)


class _Held:
    """A group that steps are cut from."""

    def __init__(self, start: int, group: Group, packed: PackedBatch) -> None:
        self.start, self.packed = start, packed
        self._lane_cells = group.lane_cells
        self._lane_start = np.cumsum(group.lane_cells) - group.lane_cells

    def cells(self, low: int, high: int) -> npt.NDArray[np.int64]:
        """Return the cells of the group that are number `low` to `high` of their lanes."""
        a = np.minimum(max(low - self.start, 0), self._lane_cells)
        b = np.minimum(max(high - self.start, 0), self._lane_cells)
        pairs = zip(self._lane_start + a, self._lane_start + b, strict=True)
        return np.concatenate([np.arange(x, y) for x, y in pairs])
