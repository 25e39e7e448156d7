"""What a model is trained for: an objective, the number of its targets, and the parts of the model it does not use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from cellmill.training.model import CellModel, TorchBatch
from cellmill.training.model.layout import Queries
from cellmill.training.objectives import (
    ClassificationObjective,
    GenerativeConfig,
    GenerativeObjective,
    Objective,
    ObjectiveResult,
)

TaskName = Literal["generate", "annotate"]
LABEL = "class"
"""Name under which the classes of cells are streamed."""


@dataclass(frozen=True)
class Task:
    """An objective and what the loop needs to know about it.

    Attributes
    ----------
    objective
        The loss.
    targets
        Number of targets in a batch, known before the forward pass: the loss is divided by their global number.
    readout
        Which outputs of the model the objective asks for.
    unused
        Parts of the model that the loss does not depend on; they keep their weights.
    """

    objective: Objective
    targets: Callable[[TorchBatch], int]
    readout: Queries
    unused: tuple[str, ...] = ()


def build_task(name: TaskName, *, cell_prompt_after: int = 0) -> Task:
    """Return a task by its name."""
    if name == "generate":
        config = GenerativeConfig(cell_prompt_after=cell_prompt_after)
        return Task(GenerativeObjective(config), lambda batch: batch.n_targets, "targets")
    return Task(
        ClassificationObjective(LABEL),
        lambda batch: batch.labels[LABEL].n_known,
        "cell",
        unused=("decoder", "mvc_decoder", "batch_encoder", "mod_encoder"),
    )


class Trainee(nn.Module):
    """Model and objective as one module, because ZeRO 3 holds parameters only during its module's forward."""

    def __init__(self, model: CellModel, task: Task) -> None:
        super().__init__()
        self.model = model
        self._objective = task.objective
        for part in task.unused:
            module = getattr(model, part)
            if module is not None:
                module.requires_grad_(False)

    def forward(self, batch: TorchBatch, step: int) -> tuple[Tensor, ObjectiveResult]:
        """Return the loss as a sum over targets, and everything the objective tells."""
        result = self._objective(self.model, batch, step)
        return result.loss_sum, result
