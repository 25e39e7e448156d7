"""Means and variances of genes, summed block by block: a data set of any size, one pass, constant memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cellmill.atlas.jit import compiled
from cellmill.tokens.block import CellBlock
from cellmill.tokens.modalities import Modalities

F64 = npt.NDArray[np.float64]


class GeneMoments:
    """Sums of ``log1p(count * target / total)`` and of its square, by batch and token.

    The total is that of a cell's counts in one modality, which its values are made of, too.

    Parameters
    ----------
    n_tokens
        Size of the vocabulary.
    n_batches
        Number of batches.
    normalize_total
        Sum that the counts of a cell are scaled to before the logarithm.
    modalities
        Of the vocabulary; by default all tokens are of one.
    """

    def __init__(
        self,
        n_tokens: int,
        n_batches: int = 1,
        *,
        normalize_total: float = 1e4,
        modalities: Modalities | None = None,
    ) -> None:
        self.cells = np.zeros(n_batches, np.int64)
        self.total = np.zeros((n_batches, n_tokens))
        self.squares = np.zeros((n_batches, n_tokens))
        self.expressed = np.zeros((n_batches, n_tokens), np.int64)
        self._target = normalize_total
        self._group = np.zeros(n_tokens, np.uint8) if modalities is None else modalities.of_token[:n_tokens]
        self._n_groups = 1 if modalities is None else len(modalities.names)

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
        _add(
            block.token,
            block.count,
            block.indptr,
            codes,
            self._target,
            self._group,
            self._n_groups,
            self.total,
            self.squares,
            self.expressed,
        )

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
    group: npt.NDArray[np.uint8],
    n_groups: int,
    total: F64,
    squares: F64,
    expressed: npt.NDArray[np.int64],
) -> None:
    scale = np.empty(n_groups)
    for cell in range(indptr.size - 1):
        scale[:] = 0.0
        for i in range(indptr[cell], indptr[cell + 1]):
            scale[group[token[i]]] += count[i]
        for g in range(n_groups):
            scale[g] = target / scale[g] if scale[g] > 0 else 0.0
        b = batch[cell]
        for i in range(indptr[cell], indptr[cell + 1]):
            t = token[i]
            x = np.log1p(count[i] * scale[group[t]])
            total[b, t] += x
            squares[b, t] += x * x
            expressed[b, t] += 1
