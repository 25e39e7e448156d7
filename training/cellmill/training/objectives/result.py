"""What an objective is, and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from cellmill.training.model import CellModel, TorchBatch


@dataclass(frozen=True)
class ObjectiveResult:
    """A loss as a sum, so that ranks and micro-batches of unequal size add up to the true mean.

    The loss to minimise is ``sum of loss_sum over everything / sum of count over everything``.
    """

    loss_sum: Tensor
    """Scalar with a gradient: the loss summed over targets."""
    count: int
    """Number of targets; known without waiting for the device."""
    metrics: dict[str, tuple[Tensor, int]] = field(default_factory=dict)
    """For each metric a detached sum on the device and a count; the mean is their quotient."""


class Objective(Protocol):
    """A loss over a batch."""

    def __call__(self, model: CellModel, batch: TorchBatch, step: int) -> ObjectiveResult:
        """Return the loss of `model` on `batch` at optimizer step `step` (from 0)."""
        ...
