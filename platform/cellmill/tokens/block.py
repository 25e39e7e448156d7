"""A block of cells in tokens: what shards are gathered into, and what the tokeniser takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from cellmill.atlas.content import content_hash, feature_keys

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class CellBlock:
    """Raw counts of some cells.

    Attributes
    ----------
    token : uint16 or uint32 [nnz]
        Token of each entry.
    count : unsigned integers or float32 [nnz]
        Its count, above zero.
    indptr : int64 [n + 1]
        Where cells begin.
    cell_id : uint64 [n]
        Key of the cells' random numbers.
    labels : int32 [n] each
        Codes of classes, -1 where unknown.
    """

    token: Array
    count: Array
    indptr: npt.NDArray[np.int64]
    cell_id: npt.NDArray[np.uint64]
    labels: dict[str, npt.NDArray[np.int32]] = field(default_factory=dict)

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return len(self.cell_id)

    @classmethod
    def from_csr(cls, matrix: sparse.csr_matrix, tokens: npt.NDArray[np.uint32]) -> CellBlock:
        """Make a block of a matrix, for inference.

        The id of a cell is the low half of its content hash over tokens, so that its random numbers depend on its
        counts alone.

        Parameters
        ----------
        matrix : csr [n, n_features]
            Raw counts without explicit zeros.
        tokens : uint32 [n_features]
            Token of each column.
        """
        indptr = matrix.indptr.astype(np.int64)
        keys = feature_keys([str(token) for token in tokens])
        hashes = content_hash(indptr, matrix.indices, matrix.data, keys)
        return cls(tokens[matrix.indices], matrix.data, indptr, hashes[:, 1].copy())

    def take(self, cells: npt.NDArray[np.int64]) -> CellBlock:
        """Return some cells in a given order."""
        lengths = np.diff(self.indptr)[cells]
        indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        entries = np.repeat(self.indptr[cells] - indptr[:-1], lengths) + np.arange(indptr[-1])
        labels = {name: codes[cells] for name, codes in self.labels.items()}
        return CellBlock(self.token[entries], self.count[entries], indptr, self.cell_id[cells], labels)
