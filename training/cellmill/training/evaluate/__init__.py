"""How good a model is, beside the simple methods that a reviewer asks for."""

from __future__ import annotations

from cellmill.training.evaluate.baselines import logistic_regression, majority_class
from cellmill.training.evaluate.plots import confusion_figure, loss_figure, umap_figure
from cellmill.training.evaluate.scores import Scores, confusion, score

__all__ = [
    "Scores",
    "confusion",
    "confusion_figure",
    "logistic_regression",
    "loss_figure",
    "majority_class",
    "score",
    "umap_figure",
]
