"""Accuracy and macro-F1 of predicted classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cellmill.config import Config
from cellmill.errors import ConfigError


class Scores(Config):
    """How well predicted classes match the true ones.

    Attributes
    ----------
    accuracy
        Share of all cells that are right; a cell of a class that training never saw is wrong.
    macro_f1
        Mean F1 over the classes present both in training and in the test cells.
    n_cells
        Test cells.
    n_classes
        Classes that `macro_f1` is the mean of.
    n_unseen
        Test cells of classes that training never saw.
    """

    accuracy: float
    macro_f1: float
    n_cells: int
    n_classes: int
    n_unseen: int


def score(true: Sequence[str], predicted: Sequence[str], classes: Sequence[str]) -> Scores:
    """Compare predictions with the truth.

    Parameters
    ----------
    true, predicted
        Class of each test cell.
    classes
        Classes of the training cells.

    Raises
    ------
    ConfigError
        There is no test cell.
    """
    truth, guess = np.asarray(true, dtype=object), np.asarray(predicted, dtype=object)
    if len(truth) == 0:
        raise ConfigError("No cell is left to test on.", where="test_where", fix="Widen `test_where`.")
    known = set(classes)
    shared = sorted(set(truth) & known)
    return Scores(
        accuracy=float((truth == guess).mean()),
        macro_f1=float(np.mean([_f1(truth == name, guess == name) for name in shared])) if shared else 0.0,
        n_cells=len(truth),
        n_classes=len(shared),
        n_unseen=int(sum(name not in known for name in truth)),
    )


def confusion(true: Sequence[str], predicted: Sequence[str], names: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return counts[true, predicted] over `names`, in their order."""
    place = {name: i for i, name in enumerate(names)}
    table = np.zeros((len(names), len(names)), np.int64)
    np.add.at(table, ([place[name] for name in true], [place[name] for name in predicted]), 1)
    return table


def _f1(truth: npt.NDArray[Any], guess: npt.NDArray[Any]) -> float:
    """Return 2 TP / (2 TP + FP + FN)."""
    hits = int((truth & guess).sum())
    return 2 * hits / (int(truth.sum()) + int(guess.sum()))
