"""Cells that were lost because their shards are damaged or missing, where the configuration says to go on."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]

_LOG = logging.getLogger("cellmill.stream")


@dataclass(frozen=True)
class Lost:
    """What a group lost.

    Attributes
    ----------
    cell : int64 [k]
        Places among the group's cells, ascending. Where cells come in sets, sets are lost as wholes.
    shard : int64 [k]
        Which of `names` each was in.
    names, reasons
        The damaged shards, ``dataset/digest``, and what is wrong with each.
    """

    cell: I64
    shard: I64
    names: tuple[str, ...]
    reasons: tuple[str, ...]

    def to_json(self) -> str:
        """Return it as JSON."""
        parts = {"names": self.names, "reasons": self.reasons}
        return json.dumps({"cell": self.cell.tolist(), "shard": self.shard.tolist(), **parts})

    @classmethod
    def from_json(cls, text: str) -> Lost:
        """Read what `to_json` wrote."""
        found = json.loads(text)
        cell, shard = (np.array(found[name], np.int64) for name in ("cell", "shard"))
        return cls(cell, shard, tuple(found["names"]), tuple(found["reasons"]))


class Losses:
    """What a stream has lost so far, shard by shard; each shard is told of once, in the log.

    Attributes
    ----------
    cells
        Number of lost cells by shard, ``dataset/digest``.
    """

    def __init__(self) -> None:
        self.cells: dict[str, int] = {}

    def add(self, lost: Lost, first: int, last: int) -> None:
        """Count what was lost of a group's cells `first` up to, not including, `last`."""
        low, high = np.searchsorted(lost.cell, [first, last])
        counts = np.bincount(lost.shard[low:high], minlength=len(lost.names)).tolist()
        for name, reason, n in zip(lost.names, lost.reasons, counts, strict=True):
            if not n:
                continue
            if name not in self.cells:
                _LOG.warning("Cells of shard %s are skipped and counted (stream.on_corrupt: skip). %s", name, reason)
            self.cells[name] = self.cells.get(name, 0) + n
