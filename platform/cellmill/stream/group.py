"""Making a group of windows: read, shuffle, tokenise, pack. Runs in a thread or in a data task anywhere."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cellmill.stream.cells import Reading
from cellmill.stream.reader import Buffers, read_block
from cellmill.tokens import PackedBatch, Tokeniser

_THREAD = threading.local()
"""Each thread reads into memory of its own; what is tokenised no longer needs it."""


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
    """

    name: str
    reading: Reading
    cells: npt.NDArray[np.int64]
    copies: npt.NDArray[np.int64] | None
    seed: int
    epoch: int

    def make(self, tokeniser: Tokeniser) -> PackedBatch:
        """Read, shuffle, tokenise and pack the group.

        Raises
        ------
        IntegrityError
            A shard is missing or damaged.
        """
        if not hasattr(_THREAD, "buffers"):
            _THREAD.buffers = Buffers()
        block = read_block(self.reading, _THREAD.buffers)
        return tokeniser.tokenise(block, seed=self.seed, epoch=self.epoch, cells=self.cells, copies=self.copies)
