"""The methods that a new one has to beat."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import sparse

TARGET_SUM = 1e4


def log_normalise(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    """Return log1p of the counts scaled to 10,000 a cell.

    Parameters
    ----------
    counts
        csr[cells x genes]; a cell without counts stays zero.
    """
    totals = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    scale = np.divide(TARGET_SUM, totals, out=np.zeros_like(totals), where=totals > 0)
    scaled = sparse.csr_matrix(sparse.diags(scale) @ counts, dtype=np.float32)
    return scaled.log1p()


def majority_class(labels: Sequence[str], n: int) -> npt.NDArray[np.object_]:
    """Predict the most frequent training class for `n` cells (the first by name, where several are)."""
    names, counts = np.unique(np.asarray(labels, dtype=object), return_counts=True)
    return np.full(n, names[int(np.argmax(counts))], dtype=object)


def logistic_regression(
    train: sparse.csr_matrix, labels: Sequence[str], test: sparse.csr_matrix, *, max_cells: int = 50_000, seed: int = 0
) -> npt.NDArray[np.object_]:
    """Predict classes by multinomial logistic regression on log-normalised counts.

    Parameters
    ----------
    train, test
        Raw counts, csr[cells x genes], over the same genes.
    labels
        Class of each training cell.
    max_cells
        Training cells that are used at most, drawn at random.
    seed
        Of that draw.
    """
    from sklearn.linear_model import LogisticRegression

    names = np.asarray(labels, dtype=object)
    if len(names) > max_cells:
        rows = np.sort(np.random.default_rng(seed).choice(len(names), max_cells, replace=False))
        train, names = train[rows], names[rows]
    classes, codes = np.unique(names, return_inverse=True)
    if len(classes) == 1:
        return np.full(test.shape[0], classes[0], dtype=object)
    model = LogisticRegression(C=0.1, max_iter=200, tol=1e-3).fit(log_normalise(train), codes)
    guess: npt.NDArray[np.object_] = classes[model.predict(log_normalise(test))]
    return guess
