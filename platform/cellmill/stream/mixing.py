"""How well batches are mixed: the entropy of a label within a batch, as a share of what random batches have."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]
_DRAWS = 200


def entropy(counts: I64) -> npt.NDArray[np.float64]:
    """Return Shannon's entropy of each row's distribution, in bits: float64 [n].

    Parameters
    ----------
    counts : int64 [n, classes]
        Cells of each class in each batch; a row of zeros has entropy 0.
    """
    total = np.maximum(counts.sum(axis=1, keepdims=True), 1)
    share = counts / total
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(counts > 0, share * np.log2(share), 0.0)
    return np.asarray(-terms.sum(axis=1), np.float64)


def class_counts(codes: npt.NDArray[np.int32], sizes: I64, classes: int) -> I64:
    """Return the cells of each class in each batch: int64 [batches, classes]; cells without a class are left out.

    Parameters
    ----------
    codes : int32 [cells]
        Class of each cell, batch after batch, -1 for none.
    sizes : int64 [batches]
        Cells of each batch.
    classes
        Number of classes.
    """
    batch = np.repeat(np.arange(sizes.size), sizes)
    known = codes >= 0
    flat = np.bincount(batch[known] * classes + codes[known], minlength=sizes.size * classes)
    return flat.reshape(sizes.size, classes)


def random_entropy(population: I64, size: int, seed: int = 0) -> float:
    """Return the mean entropy, in bits, of batches that are drawn at random without replacement.

    Parameters
    ----------
    population : int64 [classes]
        Cells of each class.
    size
        Cells of a batch.
    seed
        Of the draws; the mean is over 200 of them.
    """
    size = min(size, int(population.sum()))
    draws = np.random.default_rng(seed).multivariate_hypergeometric(population, size, _DRAWS, method="marginals")
    return float(entropy(draws).mean())


def mixing(codes: npt.NDArray[np.int32], sizes: I64, population: I64) -> float:
    """Return the entropy of batches as a share of that of random batches of the same sizes: 1 is as good as random.

    Parameters
    ----------
    codes : int32 [cells]
        Class of each cell, batch after batch, -1 for none.
    sizes : int64 [batches]
        Cells of each batch.
    population : int64 [classes]
        Cells of each class in all that is streamed.
    """
    if (population > 0).sum() < 2:
        return 1.0
    found = class_counts(codes, sizes, population.size)
    labelled = found.sum(axis=1).tolist()
    expected = {size: random_entropy(population, size) for size in set(labelled)}
    wanted = sum(expected[size] for size in labelled)
    return float(entropy(found).sum() / wanted) if wanted else 1.0
