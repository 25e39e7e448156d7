"""Means and variances of genes, summed block by block: a data set of any size, one pass, constant memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cellmill.atlas.jit import compiled
from cellmill.tokens.block import CellBlock

F64 = npt.NDArray[np.float64]


class GeneMoments:
    """Sums of ``log1p(count * target / total)`` and of its square, by batch and token.

    Parameters
    ----------
    n_tokens
        Size of the vocabulary.
    n_batches
        Number of batches.
    normalize_total
        Sum that the counts of a cell are scaled to before the logarithm.
    """

    def __init__(self, n_tokens: int, n_batches: int = 1, *, normalize_total: float = 1e4) -> None:
        self.cells = np.zeros(n_batches, np.int64)
        self.total = np.zeros((n_batches, n_tokens))
        self.squares = np.zeros((n_batches, n_tokens))
        self.expressed = np.zeros((n_batches, n_tokens), np.int64)
        self._target = normalize_total

    def add(self, block: CellBlock, batch: npt.NDArray[np.int32] | None = None) -> None:
        """Add cells.

        Parameters
        ----------
        block
            Raw counts.
        batch : int32 [n]
            Batch of each cell, 0 by default.
        """
        codes = np.zeros(block.n_cells, np.int32) if batch is None else batch
        self.cells += np.bincount(codes, minlength=self.cells.size)
        _add(block.token, block.count, block.indptr, codes, self._target, self.total, self.squares, self.expressed)

    def moments(self, batch: int) -> tuple[F64, F64]:
        """Return mean and sample variance of each token in a batch, float64 [n_tokens] each; zeros count."""
        n = max(int(self.cells[batch]), 1)
        mean = self.total[batch] / n
        return mean, (self.squares[batch] - n * mean**2) / max(n - 1, 1)


@compiled
def _add(
    token: npt.NDArray[Any],
    count: npt.NDArray[Any],
    indptr: npt.NDArray[np.int64],
    batch: npt.NDArray[np.int32],
    target: float,
    total: F64,
    squares: F64,
    expressed: npt.NDArray[np.int64],
) -> None:
    for cell in range(indptr.size - 1):
        umis = 0.0
        for i in range(indptr[cell], indptr[cell + 1]):
            umis += count[i]
        if umis == 0.0:
            continue
        scale = target / umis
        b = batch[cell]
        for i in range(indptr[cell], indptr[cell + 1]):
            x = np.log1p(count[i] * scale)
            t = token[i]
            total[b, t] += x
            squares[b, t] += x * x
            expressed[b, t] += 1
