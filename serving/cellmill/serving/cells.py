"""The cells of one request, whatever form they came in."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cellmill.counts import check_counts
from cellmill.serving.config import LimitsConfig
from cellmill.serving.errors import InvalidBodyError, TooLargeError

if TYPE_CHECKING:
    import anndata

_LONGEST_NAME = 512


@dataclass(frozen=True)
class Cells:
    """Raw counts with the names of cells and genes; checked when made by `make_cells`.

    Parameters
    ----------
    ids
        Name of each cell.
    genes
        Name of each column: ids, symbols, or a mixture.
    symbols
        Second names of the columns, where the body has them.
    data, indices, indptr : uint32[nnz], int32[nnz], int64[n_cells + 1]
        Counts as CSR, without zeros, columns ascending within a cell.
    counts_from
        Where in the body the counts were found.
    """

    ids: tuple[str, ...]
    genes: tuple[str, ...]
    symbols: tuple[str, ...] | None
    data: npt.NDArray[np.uint32]
    indices: npt.NDArray[np.int32]
    indptr: npt.NDArray[np.int64]
    counts_from: str

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return len(self.ids)

    def to_bytes(self) -> bytes:
        """Return the cells as bytes: a JSON header with its length before it, then the three arrays."""
        header = {
            "ids": self.ids,
            "genes": self.genes,
            "symbols": self.symbols,
            "nnz": int(self.data.size),
            "counts_from": self.counts_from,
        }
        text = json.dumps(header).encode()
        arrays = (self.data.tobytes(), self.indices.tobytes(), self.indptr.tobytes())
        return b"".join((struct.pack("<Q", len(text)), text, *arrays))

    @classmethod
    def from_bytes(cls, raw: bytes | bytearray) -> Cells:
        """Read what `to_bytes` returned."""
        (length,) = struct.unpack_from("<Q", raw)
        header = json.loads(bytes(raw[8 : 8 + length]))
        nnz, ids = header["nnz"], tuple(header["ids"])
        at = 8 + length
        symbols = header["symbols"]
        return cls(
            ids=ids,
            genes=tuple(header["genes"]),
            symbols=None if symbols is None else tuple(symbols),
            data=np.frombuffer(raw, np.uint32, nnz, at),
            indices=np.frombuffer(raw, np.int32, nnz, at + 4 * nnz),
            indptr=np.frombuffer(raw, np.int64, len(ids) + 1, at + 8 * nnz),
            counts_from=header["counts_from"],
        )

    def to_anndata(self) -> anndata.AnnData:
        """Return the cells as an AnnData with integer counts in X."""
        import anndata
        import pandas as pd
        from scipy import sparse

        shape = (len(self.ids), len(self.genes))
        matrix = sparse.csr_matrix((self.data, self.indices, self.indptr), shape=shape)
        var = pd.DataFrame(index=pd.Index(self.genes, dtype=object))
        if self.symbols is not None:
            var["symbol"] = list(self.symbols)
        return anndata.AnnData(matrix, obs=pd.DataFrame(index=pd.Index(self.ids, dtype=object)), var=var)


def check_size(n_cells: int, n_genes: int, n_values: int, limits: LimitsConfig, where: str) -> None:
    """Refuse a matrix above the limits, before its values are read.

    Raises
    ------
    TooLargeError
        One of the numbers is above its limit.
    InvalidBodyError
        There are no cells or no genes.
    """
    for what, n, limit in (
        ("cells", n_cells, limits.max_cells),
        ("genes", n_genes, limits.max_genes),
        ("values", n_values, limits.max_values),
    ):
        if n > limit:
            raise TooLargeError(
                f"The body has {n:,} {what}; at most {limit:,} are taken in one request.",
                where=where,
                fix="Send the cells in several requests.",
            )
    if n_cells == 0 or n_genes == 0:
        raise InvalidBodyError(f"The body has {n_cells} cells and {n_genes} genes.", where=where)


def make_cells(
    *,
    ids: Sequence[str],
    genes: Sequence[str],
    symbols: Sequence[str] | None,
    data: npt.NDArray[Any],
    indices: npt.NDArray[Any],
    indptr: npt.NDArray[Any],
    limits: LimitsConfig,
    where: str,
) -> Cells:
    """Check a request's matrix and bring it into its one form.

    Raises
    ------
    InvalidBodyError
        Names or arrays do not fit together.
    TooLargeError
        There are too many cells, genes or values.
    CountsError
        The values are not raw counts.
    """
    check_size(len(ids), len(genes), data.size, limits, where)
    if symbols is not None and len(symbols) != len(genes):
        raise InvalidBodyError(f"There are {len(genes)} genes and {len(symbols)} symbols.", where=where)
    for name in (*genes, *ids, *(symbols or ())):
        if len(name) > _LONGEST_NAME:
            raise InvalidBodyError(f"A name is {len(name):,} characters long: {name[:40]!r}…", where=where)
    _check_structure(len(ids), len(genes), data, indices, indptr, where)
    counts = check_counts(data, where)
    from scipy import sparse

    shape = (len(ids), len(genes))
    matrix = sparse.csr_matrix((counts, indices.astype(np.int32), indptr.astype(np.int64)), shape=shape)
    matrix.sort_indices()
    if not matrix.has_canonical_format:
        matrix.data = matrix.data.astype(np.int64)  # sums of repeated entries stay exact
        matrix.sum_duplicates()
    matrix.eliminate_zeros()
    return Cells(
        ids=tuple(ids),
        genes=tuple(genes),
        symbols=None if symbols is None else tuple(symbols),
        data=check_counts(matrix.data, where),
        indices=matrix.indices.astype(np.int32),
        indptr=matrix.indptr.astype(np.int64),
        counts_from=where,
    )


def _check_structure(
    n_cells: int,
    n_genes: int,
    data: npt.NDArray[Any],
    indices: npt.NDArray[Any],
    indptr: npt.NDArray[Any],
    where: str,
) -> None:
    problem = ""
    if indices.dtype.kind not in "iu" or indptr.dtype.kind not in "iu":
        problem = "indices and indptr must be integers"
    elif indptr.shape != (n_cells + 1,):
        problem = f"indptr must have {n_cells + 1:,} entries for {n_cells:,} cells, and has shape {indptr.shape}"
    elif data.ndim != 1 or data.shape != indices.shape:
        problem = f"data and indices must be of one length, and have shapes {data.shape} and {indices.shape}"
    elif indptr[0] != 0 or indptr[-1] != data.size or (indptr[1:] < indptr[:-1]).any():
        problem = f"indptr must rise from 0 to the number of values, {data.size:,}"
    elif data.size and (indices.min() < 0 or indices.max() >= n_genes):
        problem = f"indices must lie between 0 and {n_genes - 1:,}"
    if problem:
        raise InvalidBodyError(f"The matrix does not fit together: {problem}.", where=where)
