"""From token channels to input vectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

# Larger values are clipped before the value encoder, as in the published model.
MAX_VALUE = 512.0
MASK_VALUE = -1.0


class NormedEmbedding(nn.Module):
    """An embedding table followed by layer normalisation: genes, batch labels and modalities.

    Parameters
    ----------
    n
        Number of rows.
    d
        Width.
    """

    def __init__(self, n: int, d: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n, d)
        self.enc_norm = nn.LayerNorm(d)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)

    def forward(self, ids: Tensor) -> Tensor:
        """Return ``[n, d]`` for int64 ids ``[n]``."""
        normed: Tensor = self.enc_norm(self.embedding(ids))
        return normed


class ContinuousValues(nn.Module):
    """Value encoder of numbers: clamp, two linear layers, layer normalisation."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(1, d)
        self.linear2 = nn.Linear(d, d)
        self.norm = nn.LayerNorm(d)

    def forward(self, values: Tensor) -> Tensor:
        """Return ``[n, d]`` for float values ``[n]``; -1 is masked, the value of ``<cls>`` is part of the data."""
        values = values.to(self.linear1.weight.dtype).clamp(max=MAX_VALUE).unsqueeze(-1)
        encoded: Tensor = self.norm(self.linear2(torch.relu(self.linear1(values))))
        return encoded


class CategoryValues(nn.Module):
    """Value encoder of bins: one learned vector each, one for ``<cls>`` (row n_bins), one for masked (n_bins + 1)."""

    def __init__(self, n_bins: int, d: int) -> None:
        super().__init__()
        self.n_bins = n_bins
        self.embedding = nn.Embedding(n_bins + 2, d)
        self.enc_norm = nn.LayerNorm(d)

    def forward(self, values: Tensor) -> Tensor:
        """Return ``[n, d]`` for whole-number values ``[n]`` below n_bins; -1 is masked, below that ``<cls>``."""
        rows = values.long()
        rows = torch.where(rows >= 0, rows, torch.where(values == MASK_VALUE, self.n_bins + 1, self.n_bins))
        encoded: Tensor = self.enc_norm(self.embedding(rows))
        return encoded


def gather(rows: Tensor, table: Tensor) -> Tensor:
    """Return ``table[rows]``; unlike indexing, its backward is a fast scatter on CPU as well."""
    return functional.embedding(rows, table)
