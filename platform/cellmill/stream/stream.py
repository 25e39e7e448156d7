"""One worker's share of the stream, step by step."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from cellmill.atlas import Selection
from cellmill.errors import CheckpointError, ConfigError
from cellmill.memory import Memory
from cellmill.stream.balance import check_capacity, micro_batch_count, split_cells
from cellmill.stream.cells import SelectedCells
from cellmill.stream.config import StreamConfig
from cellmill.stream.group import GroupWork, MadeGroup, PlacedGroup
from cellmill.stream.layout import GroupLayout, expand, group_layout
from cellmill.stream.local import local_groups
from cellmill.stream.losses import Losses
from cellmill.stream.plan import EpochPlan, Windows, check_lanes, default_lanes, whole_sets
from cellmill.stream.position import Position
from cellmill.stream.shard_columns import Labels
from cellmill.tokens import CellBlock, PackedBatch, Tokeniser

SET = "set"
"""Label of a batch's cells where they come in sets: the number of the set."""


@dataclass
class _Arrived:
    """A group that has been made, and its place in the steps."""

    layout: GroupLayout
    made: MadeGroup | PlacedGroup
    unit: int

    def step(self, step: int, losses: Losses) -> PackedBatch | None:
        """Return its cells that a step takes, None where it has none of that step."""
        i = step - self.layout.first_step
        if not 0 <= i < self.layout.offset.size - 1:
            return None
        first, last = (self.layout.offset[i : i + 2] * self.unit).tolist()
        lost = self.made.lost
        if lost is not None:
            losses.add(lost, first, last)
            before = np.searchsorted(lost.cell, [first, last]).tolist()
            first, last = first - before[0], last - before[1]
        return self.made.part(i, first, last)


class Stream:
    """The cells of a selection as shuffled, tokenised batches; this worker's part of each global step.

    The order is a function of the selected cells and the configuration alone: the same with any number of workers, on
    either backend, and after any interruption.

    Parameters
    ----------
    selection
        The cells.
    tokeniser
        How they become tokens.
    config
        Batch size, seed, lanes, where the work is done.
    rank, world_size
        This worker, and how many there are. Worker r owns the lanes equal to r modulo `world_size`.
    labels
        Columns that travel with the cells: name, column and classes.

    Attributes
    ----------
    shards
        The shards that hold the cells, ``dataset/digest``.
    group_cells
        Cells of a group, about.

    Raises
    ------
    ConfigError
        No cell is selected, a column does not exist, the rank is none of the workers', or lanes fit neither the batch
        nor the workers.
    """

    def __init__(
        self,
        selection: Selection,
        tokeniser: Tokeniser,
        config: StreamConfig,
        *,
        rank: int = 0,
        world_size: int = 1,
        labels: Labels | None = None,
    ) -> None:
        if selection.n_cells == 0:
            raise ConfigError("No cell is selected.", where=f"where: {selection.where}", fix="Widen the predicate.")
        if not 0 <= rank < world_size:
            raise ConfigError(
                f"There is no worker {rank} of {world_size}.",
                where="rank and world_size",
                fix="Ranks count from 0; there must be at least one worker.",
            )
        self.config = config
        self.rank, self.world_size = rank, world_size
        self._cells = SelectedCells(selection, labels or {}, config.sampling, config.seed, config.cache_gb)
        self.unit = self._cells.unit
        units = whole_sets(config.batch_size, self.unit)
        self.lanes = config.lanes or default_lanes(units, world_size)
        check_lanes(self.lanes, units, world_size)
        self._share = units // self.lanes
        self._tokeniser = tokeniser
        self._selection = selection
        self._losses = Losses()
        self._memory = Memory()
        self.shards = tuple("/".join(entry.key) for entry in selection.shards)
        self.group_cells = min(config.group_cells, int(config.group_mb * 1e6 / _cell_bytes(selection)))
        self._digest = _order_digest(selection, config, self.lanes)

    @property
    def n_cells(self) -> int:
        """Cells of an epoch, over all workers, each as often as it is drawn."""
        return int(self._cells.units(0)[1].sum()) * self.unit

    @property
    def left_out(self) -> int:
        """Selected cells that the sampling never draws."""
        return self._cells.left_out

    @property
    def unlabelled(self) -> dict[str, int]:
        """Cells whose value is none of the classes, by label; their code is -1."""
        return self._cells.unlabelled

    @property
    def skipped(self) -> dict[str, int]:
        """Cells that were left out of this worker's batches so far, by damaged shard (``dataset/digest``)."""
        return dict(self._losses.cells)

    @property
    def steps_per_epoch(self) -> int:
        """Global steps of an epoch; the last may be short."""
        return self.plan(0).steps()

    @property
    def cells_per_step(self) -> int:
        """Cells that this worker gets in a step, at most; the largest over all workers."""
        return -(-self.lanes // self.world_size) * self._share * self.unit

    def plan(self, epoch: int) -> EpochPlan:
        """Return the plan of an epoch."""
        config = self.config
        return EpochPlan(
            counts=self._cells.units(epoch)[1],
            lanes=self.lanes,
            share=self._share,
            window=max(1, config.window // self.unit),
            run=max(1, config.run // self.unit),
            seed=config.seed,
            epoch=epoch,
        )

    def epoch(self, epoch: int, start_step: int = 0) -> Generator[PackedBatch, None, None]:
        """Yield this worker's cells of each global step of an epoch.

        Every worker yields as many batches; in the last step of an epoch some may be empty.

        Parameters
        ----------
        epoch
            Number of the epoch, from 0.
        start_step
            Steps that have been taken already; they are not read again.

        Raises
        ------
        IntegrityError
            A shard is missing or damaged. With ``on_corrupt: skip`` batches are smaller instead, see `skipped`.
        """
        return self.resume(self.position(epoch, start_step))

    def position(self, epoch: int, steps: int) -> Position:
        """Return where a run stands that has taken some steps of an epoch since its beginning."""
        return Position(epoch=epoch, taken=steps * self._share, lanes=self.lanes, order=self._digest)

    def resume(self, position: Position) -> Generator[PackedBatch, None, None]:
        """Yield what is left of the epoch after a position, whatever batch size and workers it was reached with.

        Raises
        ------
        CheckpointError
            The position belongs to other cells or to another order of them.
        """
        if (position.lanes, position.order) != (self.lanes, self._digest):
            raise CheckpointError(
                "The position belongs to another order of cells.",
                where=f"epoch {position.epoch}, {position.taken:,} cells a lane, {position.lanes} lanes",
                fix="Resume with the same snapshot, predicate, seed, window and run, and with "
                f"stream.lanes={position.lanes}.",
            )
        return self._steps(position.epoch, position.taken)

    def check_capacity(self, capacity: int) -> None:
        """Refuse a capacity of a forward pass that a selected cell, or a set of such cells, can exceed.

        The catalog tells how many features a cell of a shard has at most; where that is too many and only some of the
        cells are selected, these are looked at.

        Raises
        ------
        ConfigError
            One can.
        """
        shards = self._selection.shards
        measured = max(entry.n_features for entry in shards)
        longest = self._tokeniser.longest(max(entry.max_features for entry in shards), measured)
        if longest * self.unit > capacity:
            longest = self._tokeniser.longest(self._selection.most_features(), measured)
        check_capacity(longest * self.unit, capacity)

    def micro_batch_count(self, packed: PackedBatch, capacity: int) -> int:
        """Return into how many forward passes of at most `capacity` tokens this worker's cells of a step should be cut.

        Workers that step together take the largest of their numbers.

        Raises
        ------
        ConfigError
            One cell, or set of cells, alone exceeds the capacity.
        """
        return micro_batch_count(self._units(packed), capacity)

    def micro_batches(self, packed: PackedBatch, parts: int, capacity: int) -> list[PackedBatch]:
        """Cut a step's cells into parts of about equal numbers of tokens, sets whole; see `split_cells`.

        Raises
        ------
        ConfigError
            There are fewer parts than `micro_batch_count` says.
        """
        if parts == 1 and packed.n_tokens <= capacity:
            return [packed]
        return [packed.select(expand(units, self.unit)) for units in split_cells(self._units(packed), parts, capacity)]

    def _units(self, packed: PackedBatch) -> npt.NDArray[np.int64]:
        """Return the tokens of each cell, or of each set: int64 [n]."""
        tokens: npt.NDArray[np.int64] = packed.lengths.reshape(-1, self.unit).sum(axis=1)
        return tokens

    def _steps(self, epoch: int, taken: int) -> Generator[PackedBatch, None, None]:
        plan = self.plan(epoch)
        layouts: deque[GroupLayout] = deque()
        planned = list(self.groups(plan, self.rank, self.world_size, taken))
        arriving = self._groups(self._work(plan, planned, taken, layouts), plan)
        present: list[_Arrived] = []
        n_arrived = 0
        try:
            for step in range(plan.steps(taken)):
                upto = taken + (step + 1) * plan.share
                while n_arrived < len(planned) and planned[n_arrived].start < upto:
                    made = next(arriving)
                    present.append(_Arrived(layouts.popleft(), made, self.unit))
                    n_arrived += 1
                batch = self._dealt(present, step)
                present = [group for group in present if group.layout.last_step > step + 1]
                yield self._with_sets(batch)
        finally:
            arriving.close()

    def groups(self, plan: EpochPlan, rank: int, world_size: int, taken: int = 0) -> Iterator[Windows]:
        """Yield the groups of windows that a worker makes."""
        return plan.groups(rank, world_size, max(1, self.group_cells // self.unit), taken)

    def work(self, plan: EpochPlan, layout: GroupLayout, number: int = 0, name: str = "") -> GroupWork:
        """Return what makes a group of windows, before which the worker makes `number` others."""
        cells = self._cells.pieces(layout.pieces, plan.epoch)
        chosen = expand(layout.cells, self.unit)
        copies = None if cells.copies is None else cells.copies[chosen]
        skip = self.config.on_corrupt == "skip"
        return GroupWork(
            name=name,
            reading=cells.reading,
            cells=cells.row[chosen],
            number=number,
            first_step=layout.first_step,
            bounds=layout.offset * self.unit,
            copies=copies,
            seed=plan.seed,
            epoch=plan.epoch,
            unit=self.unit,
            skip=skip,
        )

    def _work(
        self, plan: EpochPlan, planned: Iterable[Windows], taken: int, layouts: deque[GroupLayout]
    ) -> Iterator[GroupWork]:
        for i, group in enumerate(planned):
            layout = group_layout(plan, group, taken)
            layouts.append(layout)
            name = f"epoch {plan.epoch}, group {i}: windows {group.first} to {group.last - 1} of lanes at "
            name += ", ".join(map(str, group.places.tolist()))
            yield self.work(plan, layout, i, name)

    def _dealt(self, present: list[_Arrived], step: int) -> PackedBatch:
        """Return a step's cells, from all groups that have some."""
        parts = [cells for group in present if (cells := group.step(step, self._losses)) is not None]
        return PackedBatch.concatenate(parts, self._memory) if parts else self._nothing()

    def _with_sets(self, packed: PackedBatch) -> PackedBatch:
        """Add, where cells come in sets, the number of each cell's set within the batch as the label ``set``."""
        if self.unit == 1:
            return packed
        numbers = np.arange(packed.n_cells, dtype=np.int32) // self.unit
        return replace(packed, labels={**packed.labels, SET: numbers})

    def _nothing(self) -> PackedBatch:
        no_ints, no_tokens = np.zeros(0, np.int32), np.zeros(0, np.uint16)
        block = CellBlock(
            token=no_tokens,
            count=np.zeros(0, np.uint8),
            indptr=np.zeros(1, np.int64),
            cell_id=np.zeros(0, np.uint64),
            labels=dict.fromkeys(self._cells.label_names, no_ints),
        )
        return self._tokeniser.tokenise(block, seed=0, epoch=0)

    def _groups(self, work: Iterator[GroupWork], plan: EpochPlan) -> Generator[MadeGroup | PlacedGroup, None, None]:
        if self.config.backend == "local":
            cells = plan.places(self.rank, self.world_size).size * plan.share * self.unit
            return local_groups(work, self._tokeniser, self.config, self._memory, cells)
        from cellmill.stream.ray_data import ray_groups

        return ray_groups(work, self._tokeniser, self.config, self.world_size)


def _cell_bytes(selection: Selection) -> float:
    """Return the memory that the counts of a cell take, on average, with 16 bits for each count."""
    shards = selection.shards
    token = 4 if max(entry.vocabulary_size for entry in shards) > 1 << 16 else 2
    return 1 + (token + 2) * sum(entry.nnz for entry in shards) / sum(entry.n_rows for entry in shards)


def _order_digest(selection: Selection, config: StreamConfig, lanes: int) -> str:
    """Return the digest of all that decides the order of cells."""
    digest = hashlib.sha256()
    for i, entry in enumerate(selection.shards):
        rows = selection.rows(i)
        digest.update(f"{entry.dataset}/{entry.digest}:".encode())
        digest.update(b"all" if rows is None else np.ascontiguousarray(rows, dtype="<u4").tobytes())
    digest.update(f"{config.seed}/{lanes}/{config.window}/{config.run}".encode())
    if config.sampling is not None:
        digest.update(config.sampling.model_dump_json().encode())
    return digest.hexdigest()[:32]
