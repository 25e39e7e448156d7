"""A block of cells in tokens: what shards are gathered into, and what the tokeniser takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from cellmill.atlas.content import content_hash, feature_keys
from cellmill.errors import CountsError

Array = npt.NDArray[Any]
U32 = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class CellBlock:
    """Counts of some cells.

    Attributes
    ----------
    token : uint16 or uint32 [nnz]
        Token of each entry, at most once in a cell.
    count : uint8, uint16, uint32 or float32 [nnz]
        Its count, above zero.
    indptr : int64 [n + 1]
        Where cells begin.
    cell_id : uint64 [n]
        Key of the cells' random numbers.
    labels : int32 [n] each
        Codes of classes, -1 where unknown.
    measured : uint32 [k] each
        Sets of tokens that were measured, zeros included: one for each data set that the cells come from. Only needed
        where zeros become tokens.
    measured_set : int32 [n]
        Which of them each cell has.
    """

    token: Array
    count: Array
    indptr: npt.NDArray[np.int64]
    cell_id: npt.NDArray[np.uint64]
    labels: dict[str, npt.NDArray[np.int32]] = field(default_factory=dict)
    measured: tuple[U32, ...] = ()
    measured_set: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return len(self.cell_id)

    @classmethod
    def from_csr(cls, matrix: sparse.csr_matrix, tokens: U32) -> CellBlock:
        """Make a block of a matrix, for inference.

        The id of a cell is the low half of its content hash over tokens, so that its random numbers depend on its
        counts alone.

        Parameters
        ----------
        matrix : csr [n, n_features]
            Raw counts, or values above zero. Whole numbers are kept in the smallest type that holds them,
            others as float32.
        tokens : uint32 [n_features]
            Token of each column, each at most once.

        Raises
        ------
        CountsError
            A value is negative or not finite.
        """
        indptr = matrix.indptr.astype(np.int64)
        data, columns = matrix.data, matrix.indices
        if not np.all(data):
            kept = data != 0
            indptr = np.concatenate([[0], np.cumsum(kept)])[indptr].astype(np.int64)
            data, columns = data[kept], columns[kept]
        count = _narrow(data)
        token = tokens.astype(np.uint16 if int(tokens.max(initial=0)) < 1 << 16 else np.uint32)
        keys = feature_keys([str(number) for number in tokens])
        # Fractional values are told apart by their bits.
        hashed = count if count.dtype.kind == "u" else count.view(np.uint32)
        hashes = content_hash(indptr, columns, hashed, keys)
        return cls(
            token=token[columns],
            count=count,
            indptr=indptr,
            cell_id=hashes[:, 1].copy(),
            measured=(tokens,),
            measured_set=np.zeros(matrix.shape[0], np.int32),
        )

    def take(self, cells: npt.NDArray[np.int64]) -> CellBlock:
        """Return some cells in a given order."""
        lengths = np.diff(self.indptr)[cells]
        indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        entries = np.repeat(self.indptr[cells] - indptr[:-1], lengths) + np.arange(indptr[-1])
        return CellBlock(
            token=self.token[entries],
            count=self.count[entries],
            indptr=indptr,
            cell_id=self.cell_id[cells],
            labels={name: codes[cells] for name, codes in self.labels.items()},
            measured=self.measured,
            measured_set=self.measured_set[cells] if self.measured_set.size else self.measured_set,
        )


def _narrow(data: Array) -> Array:
    """Return values as the smallest unsigned integers that hold them exactly, else as float32."""
    if not data.size:
        return data.astype(np.uint8)
    low, high = float(data.min()), float(data.max())
    if not (np.isfinite(high) and low >= 0):
        raise CountsError(
            f"Values lie between {low:g} and {high:g}; a negative or infinite one cannot become a token.",
            where="matrix",
            fix="Give raw counts, before scaling.",
        )
    if data.dtype.kind == "f" and np.any(data != np.rint(data)):
        return data.astype(np.float32)
    for kind in (np.uint8, np.uint16, np.uint32):
        if high <= np.iinfo(kind).max:
            return data.astype(kind)
    raise CountsError(f"A count is {high:g}, above 2**32 - 1.", where="matrix", fix="Give raw counts.")
