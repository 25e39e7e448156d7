"""A source's matrix to packed cells over features: one pass over its entries, with all that is asked of them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import sparse

from cellmill.atlas.column_sums import LARGEST, move_row, round_counts, sum_row
from cellmill.atlas.content import hash_row
from cellmill.atlas.jit import compiled
from cellmill.counts import check_counts, refuse_inexact
from cellmill.errors import CountsError
from cellmill.genes import ColumnMapping
from cellmill.ingestion.packing import MOST_BYTES, PackedCells, pack_row
from cellmill.ingestion.quality import MITOCHONDRIAL, OTHER, Measures

I64 = npt.NDArray[np.int64]
_FINE, _TOO_LARGE, _FULL = 0, 1, 2
"""What `_harmonise` returns: all is done; a sum does not fit; there is no room for the next cell."""


class Harmoniser:
    """Takes the cells of a chunk, some at a time, and packs them.

    Parameters
    ----------
    mapping
        Columns to features.
    kinds : int32 [n_features]
        What cells are judged by, see `feature_kinds`.
    keys : uint64 [n_features, 2]
        Of the features in content hashes.
    n_cells
        How many will come.
    n_values
        How many stored values they have, at most.

    Attributes
    ----------
    hashes : uint64 [n_cells, 2]
        Content hashes.
    largest : uint32 [n_cells]
        Largest count of each cell.
    umis : float64 [n_in]
        Sum of each column, whether it has a feature or not.
    """

    def __init__(
        self,
        mapping: ColumnMapping,
        kinds: npt.NDArray[np.int32],
        keys: npt.NDArray[np.uint64],
        n_cells: int,
        n_values: int,
    ) -> None:
        self._mapping, self._kinds = mapping, kinds
        self._keys = np.ascontiguousarray(keys[:, 0]), np.ascontiguousarray(keys[:, 1])
        self._n = 0
        # Two bytes an entry, and some for what does not fit into one; pages that are never written cost nothing.
        self._content = np.empty(n_values * 9 // 4 + (1 << 16), np.uint8)
        self._ends = np.zeros(n_cells + 1, np.int64)
        self._sums = np.zeros((5, n_cells), np.int64)
        self.largest = np.zeros(n_cells, np.uint32)
        self.hashes = np.zeros((n_cells, 2), np.uint64)
        self.umis = np.zeros(len(mapping.target), np.float64)

    def add(self, matrix: sparse.csr_matrix, where: str) -> None:
        """Check that values are counts, and take the cells.

        Parameters
        ----------
        matrix : csr [n, n_in], any numeric dtype
            Values in any order within a row, zeros and repeated columns allowed.
        where
            For the message.

        Raises
        ------
        CountsError
            A value is no raw count, or the sum of several columns is above 2**32 - 1.
        """
        values = matrix.data.view(np.uint8) if matrix.data.dtype == bool else matrix.data
        counts = np.empty(values.size, np.uint32)
        if round_counts(values, counts):
            check_counts(values, where)  # says what is wrong, and raises
            raise CountsError("The matrix holds values that are no counts.", where=where)
        if values.dtype.kind == "f" and values.size:
            refuse_inexact(float(counts.max()), values.dtype, where)
        indptr = matrix.indptr.astype(np.int64, copy=False)
        columns = matrix.indices.astype(np.int32, copy=False)
        cells = slice(self._n, self._n + matrix.shape[0])
        done = 0
        while True:
            state, done = self._pack(indptr, columns, counts, done, cells)
            if state != _FULL:
                break
            self._grow(MOST_BYTES * int(indptr[done + 1] - indptr[done]))
        if state == _TOO_LARGE:
            raise CountsError("The columns of one gene add up to more than 2**32 - 1.", where=where)
        self._n = cells.stop

    def _pack(
        self, indptr: I64, columns: npt.NDArray[np.int32], counts: npt.NDArray[np.uint32], first: int, cells: slice
    ) -> tuple[int, int]:
        return _harmonise(
            indptr,
            columns,
            counts,
            first,
            self._mapping.target,
            self._mapping.binary,
            bool(self._mapping.binary.any()),
            self._kinds,
            *self._keys,
            self.umis,
            self._content,
            self._ends[cells.start : cells.stop + 1],
            self._sums[:, cells],
            self.hashes[cells],
            self.largest[cells],
        )

    def _grow(self, least: int) -> None:
        larger = np.empty(self._content.size * 3 // 2 + least, np.uint8)
        larger[: self._content.size] = self._content
        self._content = larger

    def packed(self) -> PackedCells:
        """Return all cells that were taken."""
        starts, ends = self._ends[: self._n], self._ends[1 : self._n + 1]
        return PackedCells(self._content[: self._ends[self._n]], starts, ends - starts, self._sums[0, : self._n])

    def measures(self) -> Measures:
        """Return what the cells are judged by."""
        return Measures.of(self._sums[:, : self._n], self._kinds)


@compiled
def _harmonise(
    indptr: I64,
    columns: npt.NDArray[np.int32],
    counts: npt.NDArray[np.uint32],
    first: int,
    target: npt.NDArray[np.int32],
    binary: npt.NDArray[np.bool_],
    any_binary: bool,
    kinds: npt.NDArray[np.int32],
    high: npt.NDArray[np.uint64],
    low: npt.NDArray[np.uint64],
    umis: npt.NDArray[np.float64],
    content: npt.NDArray[np.uint8],
    ends: I64,
    sums: I64,
    hashes: npt.NDArray[np.uint64],
    largest: npt.NDArray[np.uint32],
) -> tuple[int, int]:
    """Pack rows from `first` on; return how it went, and how many rows are done.

    Parameters
    ----------
    counts : uint32 [nnz]
        Of `columns`.
    any_binary
        Whether there is any True in `binary`.
    ends : int64 [n + 1]
        Where cells end in `content`; the first is where the cell before does.
    sums : int64 [5, n]
        Expressed features, their counts, expressed genes, their counts, counts of mitochondrial genes.
    """
    longest = 0
    for row in range(first, indptr.size - 1):
        longest = max(longest, indptr[row + 1] - indptr[row])
    # One more, since an entry is written before it is known to be wanted.
    all_features, all_counts = np.empty(longest + 1, np.int32), np.empty(longest + 1, np.uint32)
    for row in range(first, indptr.size - 1):
        begin, end = indptr[row], indptr[row + 1]
        position = ends[row]
        if position + MOST_BYTES * (end - begin) > content.size:
            return _FULL, row
        n, highest, ascending = move_row(columns[begin:end], counts[begin:end], target, all_features, all_counts, umis)
        features, own = all_features[:n], all_counts[:n]
        if not ascending:
            n = sum_row(features, own, LARGEST)
            if n < 0:
                return _TOO_LARGE, row
            features, own = features[:n], own[:n]
            highest = int(own.max())
        if any_binary:
            highest = 0
            for i in range(n):
                own[i] = 1 if binary[features[i]] else own[i]
                highest = max(highest, int(own[i]))
        every, genes, rna, mito = np.int64(0), np.int64(0), np.int64(0), np.int64(0)
        for i in range(n):
            count, kind = np.int64(own[i]), kinds[np.uintp(features[i])]
            of_genes = np.int64(kind != OTHER)
            every += count
            genes += of_genes
            rna += of_genes * count
            mito += np.int64(kind == MITOCHONDRIAL) * count
        sums[0, row], sums[1, row], sums[2, row], sums[3, row], sums[4, row] = n, every, genes, rna, mito
        hashes[row, 0], hashes[row, 1] = hash_row(features, own, high, low)
        largest[row] = highest
        ends[row + 1] = position + pack_row(features, own, content[position:])
    return _FINE, indptr.size - 1
