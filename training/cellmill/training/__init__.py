"""Training: models, objectives, runs, and what is done with a trained model."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cellmill.training.config import FinetuneConfig, PretrainConfig
    from cellmill.training.finetuning import FinetuneResult, finetune
    from cellmill.training.inference import Annotation, Network, Predictor, annotate, embed
    from cellmill.training.pretraining import PretrainResult, pretrain

# Read when torch is first imported. Threads that wait for others must sleep: where data tasks, workers or other
# programs share the cores, spinning ones made a step take six to fifteen times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_HOME = {
    "Annotation": "inference",
    "FinetuneConfig": "config",
    "FinetuneResult": "finetuning",
    "Network": "inference",
    "Predictor": "inference",
    "PretrainConfig": "config",
    "PretrainResult": "pretraining",
    "annotate": "inference",
    "embed": "inference",
    "finetune": "finetuning",
    "pretrain": "pretraining",
}

__all__ = [
    "Annotation",
    "FinetuneConfig",
    "FinetuneResult",
    "Network",
    "Predictor",
    "PretrainConfig",
    "PretrainResult",
    "annotate",
    "embed",
    "finetune",
    "pretrain",
]


def __getattr__(name: str) -> Any:
    """Import a name when it is first asked for: `cellmill --help` must not wait for torch."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
