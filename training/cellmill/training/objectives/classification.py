"""Cell classification from the cell embedding."""

from __future__ import annotations

import torch
from torch.nn import functional

from cellmill.errors import ConfigError
from cellmill.training.model import CellModel, TorchBatch
from cellmill.training.objectives.result import ObjectiveResult


class ClassificationObjective:
    """Cross-entropy over labelled cells; cells with label -1 are left out of sums and counts alike.

    Parameters
    ----------
    label
        Name of the label among those streamed with the cells.
    """

    def __init__(self, label: str) -> None:
        self.label = label

    def __call__(self, model: CellModel, batch: TorchBatch, step: int) -> ObjectiveResult:
        """Return the summed cross-entropy and the metrics ``cross_entropy`` and ``accuracy``.

        Raises
        ------
        ConfigError
            The batch has no such label, or one beyond the classes of the model.
        """
        label = batch.labels.get(self.label)
        if label is None:
            raise ConfigError(
                f"The cells have no label {self.label!r}.",
                where="label",
                fix=f"Labels that are streamed: {', '.join(sorted(batch.labels)) or 'none'}.",
            )
        if label.largest >= model.config.n_classes:
            raise ConfigError(
                f"Label {label.largest} is beyond the {model.config.n_classes} classes of the model.",
                where=f"label {self.label!r}",
                fix="Build the model with as many classes as the label has.",
            )
        logits = model.classify(model(batch, readout="cell").cell).float()
        loss = functional.cross_entropy(logits, label.ids, ignore_index=-1, reduction="sum")
        with torch.no_grad():
            correct = (logits.argmax(-1) == label.ids).sum()
        metrics = {"cross_entropy": (loss.detach(), label.n_known), "accuracy": (correct, label.n_known)}
        return ObjectiveResult(loss, label.n_known, metrics)
