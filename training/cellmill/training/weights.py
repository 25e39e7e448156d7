"""Weights from a checkpoint to a model folder, and from a model folder into a new model."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from cellmill.errors import ModelError
from cellmill.training.checkpoint import Checkpoint
from cellmill.training.model import CellModel

_PREFIX = "weights/model."
NEW = ("cls_decoder.",)
"""Parts that a fine-tuning adds: only these may be missing from the pretrained weights."""


def weights_of(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Return the model's weights by parameter name, fp32."""
    with checkpoint.tensors() as tensors:
        return {name.removeprefix(_PREFIX): tensors[name] for name in tensors if name.startswith(_PREFIX)}


def load_pretrained(model: CellModel, weights: Mapping[str, Tensor], *, where: str) -> None:
    """Set a model's weights from a pretrained one's; every tensor is accounted for.

    Raises
    ------
    ModelError
        A tensor is missing, is left over, or has another shape, outside the parts that fine-tuning adds.
    """
    own = model.state_dict()
    usable = {name: tensor for name, tensor in weights.items() if not name.startswith(NEW)}
    missing = sorted(name for name in own.keys() - usable.keys() if not name.startswith(NEW))
    surplus = sorted(usable.keys() - own.keys())
    shapes = sorted(name for name in own.keys() & usable.keys() if own[name].shape != usable[name].shape)
    for names, what in ((missing, "missing"), (surplus, "unknown"), (shapes, "of another shape")):
        if names:
            raise ModelError(
                f"{len(names)} of the pretrained weights are {what}: {', '.join(names[:5])}.",
                where=where,
                fix="The folder's config.json and model.safetensors do not belong together; write the model again.",
            )
    model.load_state_dict({**own, **usable})
