"""A model folder that was read and verified."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellmill.errors import IntegrityError
from cellmill.genes import Vocabulary
from cellmill.lineage import Lineage, read_lineage
from cellmill.models.manifest import Task, read_manifest, verify

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ModelFolder:
    """A verified model.

    Parameters
    ----------
    path
        The folder.
    name
        What its author called it.
    task
        ``embed`` or ``annotate``; a model made to annotate can also embed.
    digest
        sha256 of ``manifest.json``, and so of everything in the folder.
    config
        Architecture, enough to build the network.
    preprocessing
        What is done to counts before they are tokens: bins, gene sampling, zero policy, ``<cls>`` value, panel.
    labels
        Names of classes, conditions, batch and domain labels, in the order of their ids.
    metrics
        What was measured, by method or by name.
    vocabulary
        Token ids of features.
    lineage
        What it was made from, down to the source files.
    """

    path: Path
    name: str
    task: Task
    digest: str
    config: Mapping[str, Any]
    preprocessing: Mapping[str, Any]
    labels: Mapping[str, Any]
    metrics: Mapping[str, Any]
    vocabulary: Vocabulary
    lineage: Lineage

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the weights by parameter name, on the CPU.

        Raises
        ------
        IntegrityError
            The file is not safetensors.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = self.path / "model.safetensors"
        try:
            return load_file(path, device="cpu")
        except (SafetensorError, OSError) as error:
            raise IntegrityError(f"The weights cannot be read: {error}", where=str(path)) from error

    def lineage_node(self) -> Lineage:
        """Return this model as a node of a lineage, with what it was made from below it."""
        return Lineage(
            kind="model",
            name=self.name,
            digest=self.digest,
            location=str(self.path.absolute()),
            facts={"task": self.task},
            parents=(self.lineage,),
        )


def load_model(path: Path | str) -> ModelFolder:
    """Read a model folder and hold every file against its manifest.

    Raises
    ------
    ModelError
        There is no model folder, it is incomplete, or of a format version that is not known.
    IntegrityError
        A file is missing, was changed, or is not listed; the message names it.
    """
    folder = Path(path).expanduser()
    manifest, digest = read_manifest(folder)
    verify(folder, manifest)
    return ModelFolder(
        path=folder,
        name=manifest.name,
        task=manifest.task,
        digest=digest,
        config=_read_json(folder / "config.json"),
        preprocessing=_read_json(folder / "preprocessing.json"),
        labels=_read_json(folder / "labels.json"),
        metrics=_read_json(folder / "metrics.json"),
        vocabulary=Vocabulary.from_parquet((folder / "vocabulary.parquet").read_bytes(), where=str(folder)),
        lineage=read_lineage(folder / "lineage.json"),
    )


def _read_json(path: Path) -> dict[str, Any]:
    data = json.loads(path.read_bytes())
    if not isinstance(data, dict):
        raise IntegrityError("The file does not hold a JSON object.", where=str(path))
    return data
