"""Cells in an h5ad that a stranger sent: only counts and names are read, all of it bounded."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from cellmill.errors import CountsError, SourceError
from cellmill.serving.bodies.hdf5_guard import child, numbers, strings
from cellmill.serving.cells import Cells, check_size, make_cells
from cellmill.serving.config import LimitsConfig
from cellmill.serving.errors import InvalidBodyError

SYMBOL_COLUMNS = ("symbol", "gene_symbol", "gene_symbols", "feature_name", "gene_name", "gene_names")
"""Columns of ``var`` that may hold second names, as offline prediction looks for them."""


def read_h5ad(body: bytes, limits: LimitsConfig) -> Cells:
    """Return the cells in an h5ad file.

    Counts are taken from the first of ``layers/counts``, ``raw.X``, ``X`` and the other layers that holds counts, the
    order of offline prediction; the answer says from where. Read are CSR, CSC and dense matrices of every anndata
    version.

    Raises
    ------
    SourceError
        It is not HDF5, or HDF5 that cannot be read.
    InvalidBodyError
        It is not an AnnData, or leads out of the file.
    TooLargeError
        It claims more cells, genes or values than are taken.
    CountsError
        None of the places holds raw counts.
    """
    try:
        with h5py.File(BytesIO(body), "r") as file:
            return _read(file, limits)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise SourceError(
            f"The body cannot be read as h5ad: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
            where="h5ad body",
            fix="Write it with anndata's write_h5ad, and send the whole file.",
        ) from error


def _read(file: Any, limits: LimitsConfig) -> Cells:
    ids = _index(file, "obs", limits.max_cells)
    refused: CountsError | None = None
    for name in _places(file):
        raw = name == "raw.X"
        matrix = _at(file, "raw/X" if raw else name)
        if matrix is None:
            continue
        genes, symbols = _genes(file, "raw/var" if raw else "var", limits.max_genes)
        data, indices, indptr = _matrix(matrix, len(ids), len(genes), limits, name)
        try:
            return make_cells(
                ids=ids,
                genes=genes,
                symbols=symbols,
                data=data,
                indices=indices,
                indptr=indptr,
                limits=limits,
                where=name,
            )
        except CountsError as error:
            refused = refused or error
    if refused is not None:
        raise refused
    raise InvalidBodyError("The file has no matrix.", where="h5ad body")


def _places(file: Any) -> list[str]:
    layers = _at(file, "layers")
    others = sorted(layers) if isinstance(layers, h5py.Group) else []
    return ["layers/counts", "raw.X", "X", *(f"layers/{name}" for name in others if name != "counts")]


def _at(file: Any, path: str) -> Any:
    node = file
    for part in path.split("/"):
        node = child(node, part) if isinstance(node, h5py.Group) else None
    return node


def _index(file: Any, path: str, most: int) -> list[str]:
    """Return the index of ``obs`` or ``var``, which old files keep as a table of rows."""
    frame = _at(file, path)
    if frame is None:
        raise InvalidBodyError(f"The file has no {path}.", where="h5ad body", fix="Send an AnnData.")
    if isinstance(frame, h5py.Dataset):
        names = frame.dtype.names or ()
        column = next((name for name in ("index", "_index") if name in names), None)
        if column is None or frame.dtype.hasobject or frame.external or frame.is_virtual or frame.size > most:
            raise InvalidBodyError(f"{path} is a table that is not read.", where=path, fix="Write the file anew.")
        return [value.decode() if isinstance(value, bytes) else str(value) for value in frame[column].tolist()]
    key = frame.attrs.get("_index", "_index")
    key = key.decode() if isinstance(key, bytes) else str(key)
    index = child(frame, key) if "/" not in key else None
    if index is None:
        raise InvalidBodyError(f"{path} has no index.", where=path)
    return strings(index, most)


def _genes(file: Any, path: str, most: int) -> tuple[list[str], list[str] | None]:
    names = _index(file, path, most)
    frame = _at(file, path)
    if isinstance(frame, h5py.Group):
        for column in SYMBOL_COLUMNS:
            found = child(frame, column)
            if found is not None:
                return names, strings(found, most)
    return names, None


def _matrix(
    node: Any, n_cells: int, n_genes: int, limits: LimitsConfig, where: str
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    check_size(n_cells, n_genes, 0, limits, where)
    if isinstance(node, h5py.Dataset):
        _check_shape(node.shape, n_cells, n_genes, where)
        dense = numbers(node, limits.max_values)
        rows, columns = np.nonzero(dense)  # NaN counts as non-zero and is refused with the counts
        indptr = np.zeros(n_cells + 1, dtype=np.int64)
        np.cumsum(np.bincount(rows, minlength=n_cells), out=indptr[1:])
        return dense[rows, columns], columns, indptr
    kind = node.attrs.get("encoding-type", node.attrs.get("h5sparse_format", ""))
    kind = kind.decode() if isinstance(kind, bytes) else str(kind)
    shape = node.attrs.get("shape", node.attrs.get("h5sparse_shape"))
    _check_shape(() if shape is None else tuple(np.asarray(shape).tolist()), n_cells, n_genes, where)
    parts = [child(node, name) for name in ("data", "indices", "indptr")]
    if any(part is None for part in parts) or not kind.startswith(("csr", "csc")):
        raise InvalidBodyError(f"The matrix is of the kind {kind!r}; csr, csc and dense are read.", where=where)
    data, indices, indptr = (numbers(part, max(limits.max_values, n_cells + 1, n_genes + 1)) for part in parts)
    if kind.startswith("csr"):
        return data, indices, indptr
    return _csc_to_csr(data, indices, indptr, n_cells, n_genes, where)


def _csc_to_csr(
    data: npt.NDArray[Any],
    indices: npt.NDArray[Any],
    indptr: npt.NDArray[Any],
    n_cells: int,
    n_genes: int,
    where: str,
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    if indptr.shape != (n_genes + 1,) or data.shape != indices.shape or data.ndim != 1:
        raise InvalidBodyError("The parts of a sparse matrix do not fit together.", where=where)
    lengths: npt.NDArray[np.int64] = np.diff(indptr.astype(np.int64)).astype(np.int64)
    if (lengths < 0).any() or int(lengths.sum()) != data.size or (data.size and indices.min() < 0):
        raise InvalidBodyError("The offsets of a sparse matrix do not rise to its number of values.", where=where)
    if data.size and int(indices.max()) >= n_cells:
        raise InvalidBodyError(f"A row of the matrix is above {n_cells - 1:,}.", where=where)
    order = np.argsort(indices, kind="stable")
    out = np.zeros(n_cells + 1, dtype=np.int64)
    np.cumsum(np.bincount(indices, minlength=n_cells), out=out[1:])
    return data[order], np.repeat(np.arange(n_genes, dtype=np.int32), lengths)[order], out


def _check_shape(shape: tuple[int, ...], n_cells: int, n_genes: int, where: str) -> None:
    if tuple(shape) != (n_cells, n_genes):
        raise InvalidBodyError(
            f"The matrix has shape {tuple(shape)}, but there are {n_cells:,} cells and {n_genes:,} genes.", where=where
        )
