"""Rows of a matrix in an HDF5 file, in whichever way it is stored, a bounded part at a time."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any, Literal

import h5py
import numpy as np
import numpy.typing as npt
from scipy import sparse

from cellmill.errors import SourceError
from cellmill.ingestion.sources.vector import Vector

Layout = Literal["csr", "csc", "dense"]
_ENTRIES_AT_ONCE = 1 << 22
_LARGEST_BLOCK = 1 << 30
_SUSPICIOUS_BYTES = 1 << 28
_SUSPICIOUS_RATIO = 500
_FIX = "The file is damaged or not what it claims: fetch it again, or write it again with anndata."


class H5Matrix:
    """A matrix in an open HDF5 file.

    Parameters
    ----------
    item
        The data set (dense) or group (sparse).
    where
        File and place, for messages.
    described
        Layout and shape, where the item itself does not say them as AnnData does.

    Raises
    ------
    SourceError
        It is no matrix, or claims more than a file of its size can hold.
    """

    def __init__(self, item: Any, where: str, described: tuple[Layout, tuple[int, int]] | None = None) -> None:
        self._item, self._where = item, where
        self.layout, self.shape = described or self._describe()
        values = item if self.layout == "dense" else item["data"]
        if values.dtype.kind not in "biuf":
            raise SourceError(f"The matrix holds {values.dtype}, not numbers.", where=where, fix=_FIX)
        parts = [item] if self.layout == "dense" else [item[name] for name in ("data", "indices", "indptr")]
        for part in parts:
            refuse_bombs(part, where)
        if self.layout == "dense":
            return
        self._indices, self._data = Vector(item["indices"]), Vector(item["data"])
        self._indptr: npt.NDArray[np.int64] = item["indptr"][:].astype(np.int64)
        major = self.shape[0] if self.layout == "csr" else self.shape[1]
        n = item["data"].shape[0]
        if (
            self._indptr.size != major + 1
            or item["indices"].shape[0] != n
            or self._indptr[0] != 0
            or self._indptr[-1] != n
            or np.any(np.diff(self._indptr) < 0)
        ):
            raise SourceError("The sparse matrix is inconsistent.", where=where, fix=_FIX)

    @cached_property
    def starts(self) -> npt.NDArray[np.int64]:
        """Where the values of each row begin among all that are stored: int64 [rows + 1]."""
        if self.layout == "csr":
            return self._indptr
        if self.layout == "dense":
            return np.arange(self.shape[0] + 1, dtype=np.int64) * self.shape[1]
        starts = np.zeros(self.shape[0] + 1, np.int64)
        for first, last in self._spans():
            row = self._indices.read(first, last)
            if int(row.min()) < 0 or int(row.max()) >= self.shape[0]:
                raise SourceError("The sparse matrix names rows that are not there.", where=self._where, fix=_FIX)
            starts[1:] += np.bincount(row, minlength=self.shape[0])
        return np.cumsum(starts)

    def rows(self, start: int, stop: int) -> sparse.csr_matrix:
        """Return rows ``[start, stop)``.

        Raises
        ------
        SourceError
            The bytes cannot be read or decoded, or name columns that are not there.
        """
        try:
            if self.layout == "dense":
                return sparse.csr_matrix(native(self._item[start:stop]))
            found = self._csr(start, stop) if self.layout == "csr" else self._csc(start, stop)
        except (OSError, RuntimeError) as error:
            raise SourceError(
                f"Cells {start} to {stop - 1} cannot be read: {error}.", where=self._where, fix=_FIX
            ) from error
        indptr, indices, data = found
        n_columns = self.shape[1]
        if indices.size and (int(indices.max()) >= n_columns or int(indices.min()) < 0):
            raise SourceError("The sparse matrix names columns that are not there.", where=self._where, fix=_FIX)
        # The constructor from arrays would go over all indices once more to choose a dtype.
        matrix = sparse.csr_matrix((stop - start, n_columns), dtype=data.dtype)
        matrix.indices, matrix.data = native(indices), native(data)
        matrix.indptr = indptr.astype(matrix.indices.dtype)
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
        rows, columns, values = [], [], []
        for first, last in self._spans():
            row = self._indices.read(first, last)
            hit = np.flatnonzero((row >= start) & (row < stop))
            if not hit.size:
                continue
            rows.append(row[hit].astype(np.int64) - start)
            columns.append(np.searchsorted(self._indptr, hit + first, side="right") - 1)
            values.append(self._data.read(first, last)[hit])
        if not rows:
            return np.zeros(stop - start + 1, np.int64), np.empty(0, np.int32), np.empty(0, self._item["data"].dtype)
        row, column = np.concatenate(rows), np.concatenate(columns).astype(np.int32)
        order = np.argsort(row, kind="stable")
        indptr = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=stop - start))])
        return indptr, column[order], np.concatenate(values)[order]

    def _spans(self) -> Iterator[tuple[int, int]]:
        n = int(self._item["data"].shape[0])
        return ((first, min(first + _ENTRIES_AT_ONCE, n)) for first in range(0, n, _ENTRIES_AT_ONCE))

    def _describe(self) -> tuple[Layout, tuple[int, int]]:
        if isinstance(self._item, h5py.Dataset):
            if self._item.ndim != 2:
                raise SourceError(f"The matrix has {self._item.ndim} dimensions, not 2.", where=self._where)
            return "dense", (int(self._item.shape[0]), int(self._item.shape[1]))
        attributes = self._item.attrs
        kind = str(attributes.get("encoding-type", attributes.get("h5sparse_format", "")))
        shape = attributes.get("shape", attributes.get("h5sparse_shape"))
        layouts: dict[str, Layout] = {"csr_matrix": "csr", "csc_matrix": "csc", "csr": "csr", "csc": "csc"}
        parts = {"data", "indices", "indptr"}
        if kind not in layouts or shape is None or not parts <= set(self._item):
            raise SourceError(f"A matrix of the kind {kind!r} is not known.", where=self._where, fix=_FIX)
        return layouts[kind], (int(shape[0]), int(shape[1]))


def refuse_bombs(part: h5py.Dataset, where: str) -> None:
    """Refuse what claims far more than its bytes can hold, or can be read only in one huge piece.

    Raises
    ------
    SourceError
        As said.
    """
    size, stored = part.size * part.dtype.itemsize, part.id.get_storage_size()
    if size > _SUSPICIOUS_BYTES and size > stored * _SUSPICIOUS_RATIO:
        raise SourceError(
            f"{part.name} claims {size / 1e9:,.1f} GB, but {stored / 1e6:,.1f} MB are stored.",
            where=where,
            fix=_FIX,
        )
    block = int(np.prod(part.chunks)) * part.dtype.itemsize if part.chunks else 0
    if block > _LARGEST_BLOCK:
        raise SourceError(
            f"{part.name} is compressed in blocks of {block / 1e9:,.1f} GB, which must be decoded whole.",
            where=where,
            fix="Write the file again with smaller chunks: adata.write_h5ad(path, compression='gzip').",
        )


def native(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return values in this machine's byte order, half precision as single."""
    kind = np.dtype(np.float32) if values.dtype == np.float16 else values.dtype.newbyteorder("=")
    return values.astype(kind, copy=False)
