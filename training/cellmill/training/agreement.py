"""Numbers that all ranks must have in common, agreed on without waiting for the device."""

from __future__ import annotations

import torch
from torch import distributed


class Agreement:
    """The ranks of a run, as processes that can compare numbers; making one is collective.

    The processes talk over the network of the machines: on the device, the answer would wait for all that the device
    still has to compute.
    """

    def __init__(self) -> None:
        self._group = None if distributed.get_backend() == "gloo" else distributed.new_group(backend="gloo")

    def largest(self, number: int) -> int:
        """Return the largest of the ranks' numbers; collective."""
        if distributed.get_world_size() == 1:
            return number
        found = torch.tensor(number, dtype=torch.int64)
        distributed.all_reduce(found, op=distributed.ReduceOp.MAX, group=self._group)
        return int(found)
