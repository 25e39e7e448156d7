"""h5ad files: metadata at once, the matrix by blocks of rows."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import pandas as pd
from anndata.io import read_elem, sparse_dataset
from scipy import sparse

from cellmill.errors import SourceError
from cellmill.ingestion.sources.memory import AnnDataSource

_BLOCK = 1 << 24


class H5adSource:
    """Cells of an h5ad file; CSR, CSC and dense matrices, of AnnData 0.7 and later.

    Parameters
    ----------
    path
        The file.
    name
        Name of the data set.

    Raises
    ------
    SourceError
        The file is missing, is not HDF5, or is HDF5 but no AnnData.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.name = name
        self.path = path
        self.url = str(path.absolute())
        self._file = _open(path)
        self.sha256 = _sha256(path)
        if self.n_cells == 0:
            raise SourceError("There are no cells.", where=self.url)

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return len(self.obs())

    def places(self) -> Sequence[str]:
        """Return the places where counts may be, the likeliest first."""
        layers = [f"layers/{name}" for name in self._file.get("layers", {})]
        first = [place for place in layers if place == "layers/counts"]
        others = [place for place, key in (("raw.X", "raw/X"), ("X", "X")) if key in self._file]
        return [*first, *others, *(place for place in layers if place not in first)]

    def entries(self, place: str) -> int:
        """Return the number of stored values of the matrix at `place`."""
        matrix = self._matrix(place)
        return int(matrix["data"].size if isinstance(matrix, h5py.Group) else matrix.size)

    def var(self, place: str) -> pd.DataFrame:
        """Return the features' table that belongs to the matrix at `place`."""
        table: pd.DataFrame = read_elem(self._file["raw/var" if place == "raw.X" else "var"])
        return table

    def obs(self) -> pd.DataFrame:
        """Return the cells' table."""
        if not hasattr(self, "_obs"):
            self._obs: pd.DataFrame = read_elem(self._file["obs"])
        return self._obs

    def rows(self, place: str, start: int, stop: int) -> sparse.csr_matrix:
        """Read rows ``[start, stop)`` of the matrix at `place`."""
        matrix = self._matrix(place)
        block = sparse_dataset(matrix)[start:stop] if isinstance(matrix, h5py.Group) else matrix[start:stop]
        return sparse.csr_matrix(block)

    def _matrix(self, place: str) -> Any:
        key = place.replace(".", "/")
        if key not in self._file:
            raise SourceError(
                f"There is no matrix at {place!r}.", where=self.url, fix=f"There are: {', '.join(self.places())}."
            )
        return self._file[key]


def open_h5ad(path: Path, name: str) -> H5adSource | AnnDataSource:
    """Open an h5ad; a file older than AnnData 0.7 is read into memory, since only anndata knows its encodings.

    Raises
    ------
    SourceError
        See `H5adSource`.
    """
    with _open(path) as file:
        modern = all("encoding-type" in file[key].attrs for key in ("obs", "var"))
        pickled = _object_array(file)
    if pickled:
        raise SourceError(
            f"The array {pickled!r} holds pickled objects.", where=str(path), fix="Write the file again with anndata."
        )
    if modern:
        return H5adSource(path, name)
    try:
        adata = ad.read_h5ad(path)
    except (OSError, ValueError, KeyError, TypeError, ad._io.utils.AnnDataReadError) as error:
        raise SourceError(f"The file cannot be read as h5ad: {error}", where=str(path)) from error
    return AnnDataSource(adata, name, url=str(path.absolute()), sha256=_sha256(path))


def _open(path: Path) -> h5py.File:
    fix = "Give an AnnData file as written by `adata.write_h5ad`."
    if not path.is_file():
        raise SourceError("The file does not exist.", where=str(path), fix="Check the path.")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        text = str(error)
        what = "is cut short" if "truncated" in text else "is not HDF5"
        raise SourceError(f"The file {what}, so it is no h5ad.", where=str(path), fix=fix) from error
    missing = [key for key in ("obs", "var") if key not in file]
    if missing:
        file.close()
        raise SourceError(
            f"The file is HDF5 but no h5ad: it has no {' and no '.join(missing)}.", where=str(path), fix=fix
        )
    return file


def _object_array(file: h5py.File) -> str:
    found: list[str] = []

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.dtype.kind == "V" and "H5T_OPAQUE" in str(item.id.get_type()):
            found.append(name)

    file.visititems(visit)
    return found[0] if found else ""


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
