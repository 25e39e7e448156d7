"""Making a group of windows: read, shuffle, tokenise, pack. Runs in a thread or in a data task anywhere."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cellmill.memory import Memory
from cellmill.stream.cells import Reading
from cellmill.stream.damage import Damage
from cellmill.stream.losses import Lost
from cellmill.stream.reader import read_block
from cellmill.tokens import PackedBatch, Tokeniser


@dataclass(frozen=True)
class MadeGroup:
    """A group that was made: its cells in the order of the work, but for those that were lost."""

    packed: PackedBatch
    lost: Lost | None = None


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
