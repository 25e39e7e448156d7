"""Heads: values from token outputs, values from the cell embedding, classes from the cell embedding."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ExprDecoder(nn.Module):
    """Predict the value of a token from its output.

    Parameters
    ----------
    d_in
        Width of the input: the model's, or twice that when label embeddings are concatenated.
    d
        Width of the model.
    """

    def __init__(self, d_in: int, d: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(d_in, d), nn.LeakyReLU(), nn.Linear(d, d), nn.LeakyReLU(), nn.Linear(d, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[n]`` for ``[n, d_in]``."""
        predicted: Tensor = self.fc(x)
        return predicted.squeeze(-1)


class MVCDecoder(nn.Module):
    """Predict every gene's value from the cell embedding: ``(W sigmoid(Q g)) . c``, as an inner product.

    It is evaluated as ``sigmoid(Q g) . (W' c)``, so that W is applied once a cell and Q once a distinct gene.
    """

    def __init__(self, d_cell: int, d: int) -> None:
        super().__init__()
        self.gene2query = nn.Linear(d, d)
        self.W = _Transposed(d, d_cell, bias=False)

    def query(self, genes: Tensor) -> Tensor:
        """Return queries ``[n, d]`` of gene embeddings ``[n, d]``."""
        query: Tensor = self.gene2query(genes)
        return torch.sigmoid(query)

    def key(self, cell: Tensor) -> Tensor:
        """Return what queries are multiplied with, ``[n, d]``, for cell contexts ``[n, d_cell]``."""
        key: Tensor = self.W(cell)
        return key


class _Transposed(nn.Linear):
    """A linear map applied from its output side: ``x W`` instead of ``x W'``."""

    def forward(self, input: Tensor) -> Tensor:
        return input @ self.weight


class ClsDecoder(nn.Module):
    """Classify cells: blocks of linear, ReLU, layer normalisation, then a linear layer.

    Parameters
    ----------
    d
        Width of the cell embedding.
    n_classes
        Number of classes.
    n_layers
        Linear layers, the last included.
    """

    def __init__(self, d: int, n_classes: int, n_layers: int) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for _ in range(n_layers - 1):
            blocks += [nn.Linear(d, d), nn.ReLU(), nn.LayerNorm(d)]
        self._decoder = nn.Sequential(*blocks)
        self.out_layer = nn.Linear(d, n_classes)

    def forward(self, cell: Tensor) -> Tensor:
        """Return logits ``[n, n_classes]`` for ``[n, d]``."""
        logits: Tensor = self.out_layer(self._decoder(cell))
        return logits
