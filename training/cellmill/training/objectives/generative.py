"""Generative pretraining: gene prompt, cell prompt, and values from the cell embedding."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from cellmill.config import Config
from cellmill.training.model import CellModel, TorchBatch
from cellmill.training.objectives.result import ObjectiveResult

_EPSILON = 1e-6


class GenerativeConfig(Config):
    """Options of :class:`GenerativeObjective`."""

    from_cell_weight: float = Field(
        default=1.0, ge=0.0, description="Weight of the loss of values predicted from the cell embedding; 0 omits it."
    )
    cell_prompt_weight: float = Field(default=1.0, ge=0.0, description="Weight of the second pass; 0 omits it.")
    cell_prompt_after: int = Field(
        default=1000, ge=0, description="The second pass begins at this step, when cell embeddings mean something."
    )


class GenerativeObjective:
    """Squared error of predicted values, in up to three ways, summed over targets.

    ``gep``   gene prompt: from the outputs of target tokens
    ``gepc``  from the cell embedding and the gene's identity alone
    ``gen``   cell prompt: a second pass in which the cell embedding, cut off from its gradient, replaces the input
              vector of ``<cls>``

    Targets are generative tokens, or masked ones in fine-tuning; their values are bins (or log1p values). The sum
    ``gep + gepc + gen`` is that of scGPT's pretraining (Cui et al. 2024). Dropout of value embeddings is drawn once
    for both passes.

    Parameters
    ----------
    config
        Weights and warm-up.
    """

    def __init__(self, config: GenerativeConfig | None = None) -> None:
        self.config = config or GenerativeConfig()

    def __call__(self, model: CellModel, batch: TorchBatch, step: int) -> ObjectiveResult:
        """Return the summed loss and the metrics ``gep``, ``gepc``, ``gen`` (mean squared errors) and ``mre``."""
        target, n = batch.target_value, batch.n_targets
        embedded = model.embed(batch)
        first = model.encode(batch, embedded, readout="targets")
        predicted = model.decode_values(first)
        loss = squared_error(predicted, target)
        metrics = {"gep": (loss.detach(), n), "mre": (relative_error(predicted, target), n)}
        if self.config.from_cell_weight and model.mvc_decoder is not None:
            from_cell = squared_error(model.decode_from_cell(first), target)
            loss = loss + self.config.from_cell_weight * from_cell
            metrics["gepc"] = (from_cell.detach(), n)
        if self.config.cell_prompt_weight and step >= self.config.cell_prompt_after:
            second = model.encode(batch, embedded, cell_prompt=first.cell.detach(), readout="targets")
            prompted = squared_error(model.decode_values(second), target)
            loss = loss + self.config.cell_prompt_weight * prompted
            metrics["gen"] = (prompted.detach(), n)
        return ObjectiveResult(loss, n, metrics)


def squared_error(predicted: Tensor, target: Tensor) -> Tensor:
    """Return the sum of squared differences; float32 targets make it float32 or wider."""
    return (predicted - target).square().sum()


def relative_error(predicted: Tensor, target: Tensor) -> Tensor:
    """Return the detached sum of ``|p - t| / (t + 1e-6)``; where t is 0 this is huge, as in the publication."""
    with torch.no_grad():
        return ((predicted - target).abs() / (target + _EPSILON)).sum()
