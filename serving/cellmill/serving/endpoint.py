"""What the HTTP application needs of a model, wherever that runs."""

from __future__ import annotations

from typing import Protocol

from cellmill.models.manifest import Task
from cellmill.serving.answers import Answer
from cellmill.serving.cells import Cells
from cellmill.serving.schemas import ModelCard


class Endpoint(Protocol):
    """One served model."""

    @property
    def card(self) -> ModelCard:
        """Name, digest, tasks, labels, metrics, lineage."""

    async def answer(self, task: Task, cells: Cells) -> Answer:
        """Return what the model says about the cells.

        Raises
        ------
        GeneMappingError
            Too few genes of the request are known, or too few of the model's are in it.
        OverloadedError
            Too much waits already.
        """
