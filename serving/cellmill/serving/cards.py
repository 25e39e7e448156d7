"""What the endpoint tells about a model."""

from __future__ import annotations

from cellmill.models import ModelFolder
from cellmill.serving.schemas import ModelCard


def card_of(folder: ModelFolder, name: str) -> ModelCard:
    """Return the card of a model folder that is served under `name`."""
    panel = folder.preprocessing.get("panel")
    return ModelCard(
        name=name,
        digest=folder.digest,
        tasks=["embed", "annotate"] if folder.task == "annotate" else ["embed"],
        labels={
            key: [str(label) for label in names] for key, names in folder.labels.items() if isinstance(names, list)
        },
        n_genes=len(folder.vocabulary.features) if panel is None else len(panel),
        metrics=dict(folder.metrics),
        lineage=folder.lineage_node().model_dump(mode="json"),
    )
