"""Rows of a matrix in HDF5 or zarr, in whichever way it is stored, a bounded part at a time."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from obstore.exceptions import BaseError
from scipy import sparse

from cellmill.counts import refuse_inexact
from cellmill.errors import CountsError, SourceError
from cellmill.ingestion.sources.bombs import refuse_bombs, refuse_gaps
from cellmill.ingestion.sources.dense_rows import by_rows, is_tall, sparse_of
from cellmill.ingestion.sources.holding import hold
from cellmill.ingestion.sources.prepared import prepared
from cellmill.ingestion.sources.starts import EvenStarts, Starts
from cellmill.ingestion.sources.stored_rows import StoredRows, write_rows
from cellmill.ingestion.sources.vector import Vector

Layout = Literal["csr", "csc", "dense"]
_ENTRIES_AT_ONCE = 1 << 19
_STARTS_AT_ONCE = 1 << 20
_LOOK_CELLS = 256
"""Of so few rows a matrix by columns is searched, rather than transposed: who looks may not want to read."""
UNREADABLE = (OSError, RuntimeError, ValueError, EOFError, zlib.error, BaseError)
"""What the libraries raise that read arrays of files that are damaged."""

_FIX = "The file is damaged or not what it claims: fetch it again, or write it again with anndata."


class H5Matrix:
    """A matrix in an open HDF5 file, or in a zarr group, which is sliced alike.

    Parameters
    ----------
    item
        The data set (dense) or group (sparse).
    where
        File and place, for messages.
    described
        Layout and shape, where the item itself does not say them as AnnData does.
    check
        Refuses an array that claims more than is there, or of which parts are missing.
    identity
        Names the content, so that a matrix by columns is transposed once a machine; without it, each read goes over
        all of it.

    Raises
    ------
    SourceError
        It is no matrix, or claims more than a file of its size can hold.
    """

    def __init__(
        self,
        item: Any,
        where: str,
        described: tuple[Layout, tuple[int, int]] | None = None,
        check: Callable[[Any, str], None] | None = None,
        identity: str = "",
    ) -> None:
        self._item, self._where, self._identity = item, where, identity
        self._transposed: StoredRows | None = None
        self.layout, self.shape = described or self._describe()
        if self.layout == "dense":
            self._check_kind(item, "biuf")
            (check or _check_hdf5)(item, where)
            return
        for name, kinds in (("data", "biuf"), ("indices", "iu"), ("indptr", "iu")):
            self._check_kind(item[name], kinds)
            (check or _check_hdf5)(item[name], where)
        self._indices, self._data = Vector(item["indices"]), Vector(item["data"])
        major = self.shape[0] if self.layout == "csr" else self.shape[1]
        n = item["data"].shape[0]
        if item["indptr"].shape != (major + 1,) or item["indices"].shape != (n,):
            raise SourceError("The sparse matrix is inconsistent.", where=where, fix=_FIX)
        self._indptr = self._read_indptr()
        if self._indptr[0] != 0 or self._indptr[-1] != n:
            raise SourceError("The sparse matrix is inconsistent.", where=where, fix=_FIX)

    def _read_indptr(self) -> npt.NDArray[np.int64]:
        """Return where rows (or columns) begin, read in pieces: it is as long as there are cells."""
        item = self._item["indptr"]
        n, chunk = int(item.shape[0]), int(item.chunks[0]) if item.chunks else 1
        hold(
            f"Where the {n - 1:,} {'rows' if self.layout == 'csr' else 'columns'} begin",
            8 * n + block_bytes(item),
            self._where,
        )
        found = np.empty(n, np.int64)
        step = max(1, _STARTS_AT_ONCE // chunk) * chunk
        for a in range(0, n, step):
            try:
                found[a : a + step] = item[a : a + step]
            except UNREADABLE as error:
                raise SourceError(f"Its rows cannot be read: {_text(error)}.", where=self._where, fix=_FIX) from error
            if np.any(np.diff(found[max(a - 1, 0) : a + step]) < 0):
                raise SourceError("The sparse matrix is inconsistent.", where=self._where, fix=_FIX)
        return found

    @property
    def blocks(self) -> dict[str, int]:
        """Bytes of the chunks that are decoded as a whole, by what they are."""
        if self.layout == "dense":
            return {"Decoding a chunk of the matrix": block_bytes(self._item)}
        vectors = {"indices": self._indices, "data": self._data}
        whole = [name for name, vector in vectors.items() if not vector.is_direct]
        return {f"Decoding a chunk of {name}": block_bytes(self._item[name]) for name in whole}

    @cached_property
    def starts(self) -> Starts:
        """Where the values of each row begin among all that are stored: int64 [rows + 1]."""
        if self.layout == "csr":
            return self._indptr
        if self.layout == "dense" and not self._is_tall:
            return EvenStarts([self.shape[0]], [self.shape[1]])
        if self._identity:
            return self._by_rows().starts
        hold(f"Where the {self.shape[0]:,} rows begin", 16 * self.shape[0], self._where)
        counts = np.zeros(self.shape[0] + 1, np.int64)
        for row, _, _ in self._entries():
            counts[1:] += np.bincount(row, minlength=self.shape[0])
        return np.cumsum(counts)

    def rows(self, start: int, stop: int) -> sparse.csr_matrix:
        """Return rows ``[start, stop)``.

        Raises
        ------
        SourceError
            The bytes cannot be read or decoded, or name columns that are not there.
        """
        try:
            copied = self._is_tall or (self.layout == "csc" and self._identity)
            if copied and (self._transposed or stop - start > _LOOK_CELLS):
                return self._by_rows().rows(start, stop)
            if self.layout == "dense":
                return sparse_of(native(self._item[start:stop], self._where))
            found = self._csr(start, stop) if self.layout == "csr" else self._csc(start, stop)
        except UNREADABLE as error:
            raise SourceError(
                f"Cells {start} to {stop - 1} cannot be read: {_text(error)}.", where=self._where, fix=_FIX
            ) from error
        indptr, indices, data = found
        n_columns = self.shape[1]
        # Without a sign, what is below zero is far above.
        if indices.size and int(indices.view(indices.dtype.str.replace("i", "u")).max()) >= n_columns:
            raise SourceError("The sparse matrix names columns that are not there.", where=self._where, fix=_FIX)
        data = native(data, self._where)
        # The constructor from arrays would go over all indices once more to choose a dtype.
        matrix = sparse.csr_matrix((stop - start, n_columns), dtype=data.dtype)
        # Narrow indices are wide enough for columns, but not for positions.
        wide = np.int32 if max(n_columns, indices.size) < 2**31 else np.int64
        matrix.indices, matrix.data = indices.astype(wide, copy=False), data
        matrix.indptr = indptr.astype(wide, copy=False)
        return matrix

    def _csr(self, start: int, stop: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
        first, last = int(self._indptr[start]), int(self._indptr[stop])
        return (
            self._indptr[start : stop + 1] - first,
            self._indices.read(first, last),
            self._data.read(first, last),
        )

    def _csc(self, start: int, stop: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
        """Go over all entries, and keep those of the rows."""
        rows, columns, values = [np.empty(0, np.int32)], [np.empty(0, np.int32)], [np.empty(0, self._data.dtype)]
        for row, column, value in self._entries():
            hit = np.flatnonzero((row >= start) & (row < stop))
            rows.append(row[hit] - start)
            columns.append(column[hit])
            values.append(value[hit])
        row, column = np.concatenate(rows), np.concatenate(columns)
        order = np.argsort(row, kind="stable")
        indptr = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=stop - start))])
        return indptr, column[order], np.concatenate(values)[order]

    def _entries(self) -> Iterator[tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[Any]]]:
        """Yield rows, columns and values of a matrix by columns, block by block."""
        n = int(self._item["data"].shape[0])
        for first in range(0, n, _ENTRIES_AT_ONCE):
            last = min(first + _ENTRIES_AT_ONCE, n)
            with self._reading():
                row, value = self._indices.read(first, last), self._data.read(first, last)
            if int(row.min()) < 0 or int(row.max()) >= self.shape[0]:
                raise SourceError("The sparse matrix names rows that are not there.", where=self._where, fix=_FIX)
            column = np.searchsorted(self._indptr, np.arange(first, last), side="right") - 1
            yield row.astype(np.int32), column.astype(np.int32), native(value, self._where)

    def _by_rows(self) -> StoredRows:
        """Return a copy by rows, on this machine's disk, of a matrix that is by columns or by tall chunks."""
        if self._transposed is None and self._is_tall:
            self._transposed = by_rows(self._item, 0, self._block, self._identity, self._where)
        if self._transposed is None:
            dtype = native(np.empty(0, self._data.dtype)).dtype

            def make(folder: Path) -> None:
                write_rows(folder, self._entries(), self.shape, int(self._indptr[-1]), dtype, self._where)

            self._transposed = StoredRows(prepared(f"by rows: {self._identity}", make))
        return self._transposed

    def _block(self, part: Any) -> npt.NDArray[Any]:
        with self._reading():
            return native(self._item[part], self._where)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except UNREADABLE as error:
            raise SourceError(f"The matrix cannot be read: {_text(error)}.", where=self._where, fix=_FIX) from error

    @cached_property
    def _is_tall(self) -> bool:
        return self.layout == "dense" and bool(self._identity) and is_tall(self._item, 0)

    def _describe(self) -> tuple[Layout, tuple[int, int]]:
        if hasattr(self._item, "shape"):
            if len(self._item.shape) != 2:
                raise SourceError(f"The matrix has {len(self._item.shape)} dimensions, not 2.", where=self._where)
            return "dense", (int(self._item.shape[0]), int(self._item.shape[1]))
        attributes = self._item.attrs
        kind = str(attributes.get("encoding-type", attributes.get("h5sparse_format", "")))
        shape = attributes.get("shape", attributes.get("h5sparse_shape"))
        layouts: dict[str, Layout] = {"csr_matrix": "csr", "csc_matrix": "csc", "csr": "csr", "csc": "csc"}
        parts = ("data", "indices", "indptr")
        if kind not in layouts or shape is None or not all(part in self._item for part in parts):
            raise SourceError(f"A matrix of the kind {kind!r} is not known.", where=self._where, fix=_FIX)
        try:
            rows, columns = (int(n) for n in shape)
        except (TypeError, ValueError):
            rows = columns = -1
        if min(rows, columns) < 0:
            raise SourceError(f"The matrix has no shape: {shape}.", where=self._where, fix=_FIX)
        return layouts[kind], (rows, columns)

    def _check_kind(self, part: Any, kinds: str) -> None:
        if not hasattr(part, "shape") or (self.layout != "dense" and len(part.shape) != 1):
            raise SourceError("The sparse matrix is inconsistent.", where=self._where, fix=_FIX)
        if part.dtype.kind not in kinds:
            raise SourceError(f"The matrix holds {part.dtype}, not numbers.", where=self._where, fix=_FIX)


def block_bytes(array: Any) -> int:
    """Return the bytes of a chunk of an array when it is decoded, 0 where it has none."""
    chunks = getattr(array, "chunks", None)
    return prod(chunks) * int(array.dtype.itemsize) if chunks else 0


def _check_hdf5(part: Any, where: str) -> None:
    refuse_bombs(part, where)
    refuse_gaps(part, where)


def _text(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def native(values: npt.NDArray[Any], where: str = "") -> npt.NDArray[Any]:
    """Return values in this machine's byte order, half precision as single, and more than double as double.

    Raises
    ------
    CountsError
        They are of half precision and above 2,048, where it does not hold every integer; or double precision does not
        hold one.
    """
    if values.dtype.kind == "f" and values.dtype.itemsize > 8:
        narrow = values.astype(np.float64)
        if not np.array_equal(narrow, values, equal_nan=True):
            raise CountsError(
                f"Values of {values.dtype} need more than double precision.",
                where=where,
                fix="Raw counts are integers: store them as such.",
            )
        return narrow
    if values.dtype != np.float16:
        return values.astype(values.dtype.newbyteorder("="), copy=False)
    if values.size:
        refuse_inexact(float(values.max()), np.dtype(np.float16), where)
    return values.astype(np.float32)
