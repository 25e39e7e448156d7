"""Making a group of windows: read, shuffle, tokenise, pack. Runs in a thread or in a data task anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cellmill.memory import Memory
from cellmill.stream.cells import Reading
from cellmill.stream.damage import Damage
from cellmill.stream.losses import Lost
from cellmill.stream.reader import OpenReading, read_block
from cellmill.stream.rooms import StepRooms
from cellmill.tokens import PackedBatch, RawCounts, Tokeniser
from cellmill.tokens.raw_counts import raw_batch


@dataclass(frozen=True)
class MadeGroup:
    """A group that was made: its cells in the order of the work, but for those that were lost."""

    packed: PackedBatch
    lost: Lost | None = None

    def part(self, step: int, first: int, last: int) -> PackedBatch:
        """Return the cells `first` up to, not including, `last`, which are those of its step of that number."""
        return self.packed.part(first, last)


@dataclass(frozen=True)
class PlacedGroup:
    """A group of raw counts, each cell of which is where its step has it.

    Attributes
    ----------
    tokens, counts
        Entries of each of its steps that was not taken yet, whose memory would be kept by what was.
    lengths : int64 [n]
        Entries of each cell.
    cell_id, labels
        Of the cells.
    """

    tokens: dict[int, npt.NDArray[Any]]
    counts: dict[int, npt.NDArray[Any]]
    lengths: npt.NDArray[np.int64]
    cell_id: npt.NDArray[np.uint64]
    labels: dict[str, npt.NDArray[np.int32]]
    lost: None = None

    def part(self, step: int, first: int, last: int) -> PackedBatch:
        """Take the cells `first` up to, not including, `last`, which are those of its step of that number."""
        cells = slice(first, last)
        labels = {name: codes[cells] for name, codes in self.labels.items()}
        token, count = self.tokens.pop(step), self.counts.pop(step)
        return raw_batch(token, count, self.lengths[cells], self.cell_id[cells], labels)


@dataclass(frozen=True)
class GroupWork:
    """All that is needed to make a group, and nothing else: it travels.

    Attributes
    ----------
    name
        Identity of the group, for checks and messages.
    reading
        Which rows to read.
    cells : int64 [n]
        Which of the rows read come out, in order.
    number
        How many groups the worker makes before it.
    first_step
        The first step that it has cells of.
    bounds : int64 [steps + 1]
        Where the cells of each of its steps begin in `cells`.
    copies : int64 [n] or None
        How often each came before in the epoch.
    seed, epoch
        Keys of all chance in tokens.
    unit
        Cells that stay together: a set that has lost one is lost.
    skip
        Whether to go on without cells that are missing or damaged.
    """

    name: str
    reading: Reading
    cells: npt.NDArray[np.int64]
    number: int
    first_step: int
    bounds: npt.NDArray[np.int64]
    copies: npt.NDArray[np.int64] | None
    seed: int
    epoch: int
    unit: int = 1
    skip: bool = False

    def make(self, tokeniser: Tokeniser, memory: Memory | None = None) -> MadeGroup:
        """Read, shuffle, tokenise and pack the group; `memory` is where to, by default new memory.

        Raises
        ------
        IntegrityError
            A shard is missing or damaged, and it is not to be skipped.
        """
        damage = Damage(self.reading.cell_id.size) if self.skip else None
        block = read_block(self.reading, self.cells, memory=memory, damage=damage)
        copies, lost = self.copies, None
        if damage:
            gone = damage.lost[self.cells].reshape(-1, self.unit).any(axis=1).repeat(self.unit)
            lost = self._lost(np.flatnonzero(gone), damage)
            block = block.take(np.flatnonzero(~gone))
            copies = None if copies is None else copies[~gone]
        packed = tokeniser.tokenise(block, seed=self.seed, epoch=self.epoch, copies=copies, memory=memory)
        return MadeGroup(packed, lost)

    def make_in(self, rooms: StepRooms, tokeniser: Tokeniser, memory: Memory) -> MadeGroup | PlacedGroup:
        """Make the group as `make` does; raw counts are read straight to where the steps have them.

        Raises
        ------
        IntegrityError
            A shard is missing or damaged, and it is not to be skipped.
        """
        if not isinstance(tokeniser, RawCounts):
            return self.make(tokeniser, memory)
        damage = Damage(self.reading.cell_id.size) if self.skip else None
        opened = OpenReading(self.reading, damage)
        lengths = opened.lengths[self.cells]
        types = opened.token_dtype, opened.count_dtype
        places = rooms.reserve(self.number, self.first_step, self.bounds, lengths, types)
        opened.read(self.cells, places.to_tokens, places.to_counts)
        if damage:
            # There are holes between its cells now.
            return self.make(tokeniser, memory)
        labels = {name: codes[self.cells] for name, codes in self.reading.labels.items()}
        tokens, counts = dict(enumerate(places.tokens)), dict(enumerate(places.counts))
        return PlacedGroup(tokens, counts, lengths, self.reading.cell_id[self.cells], labels)

    def _lost(self, places: npt.NDArray[np.int64], damage: Damage) -> Lost:
        numbers = sorted(damage.reasons)
        shard_of = np.repeat(np.arange(len(self.reading.shards)), [runs.n_rows for runs in self.reading.shards])
        entries = [self.reading.shards[number].entry for number in numbers]
        reasons = [damage.reasons[number] for number in numbers]
        return Lost(
            cell=places,
            shard=np.searchsorted(numbers, shard_of[self.cells[places]]),
            names=tuple("/".join(entry.key) for entry in entries),
            reasons=tuple(f"{reason.what} {reason.where}" for reason in reasons),
        )
