"""h5ad files: names and metadata at once, the matrix by blocks of rows."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import pandas as pd
from anndata.io import read_elem

from cellmill.errors import SourceError
from cellmill.ingestion.sources.base import NAMED_COUNTS
from cellmill.ingestion.sources.matrix import H5Matrix
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
        self.stamp = stamp(path)
        self._obs: dict[str, Any] = {}
        self._matrices: dict[str, H5Matrix] = {}
        if self.n_cells == 0:
            raise SourceError("There are no cells.", where=self.url)

    @cached_property
    def sha256(self) -> str:
        """Digest of the file's bytes; all of them are read."""
        return _sha256(self.path)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return len(self._index())

    def places(self) -> Sequence[str]:
        """Return the places where counts may be, the likeliest first."""
        layers = [f"layers/{name}" for name in self._file.get("layers", {})]
        named = [place for place in layers if place.removeprefix("layers/").lower() in NAMED_COUNTS]
        own = [place for place, key in (("raw.X", "raw/X"), ("X", "X")) if key in self._file]
        return [*named, *own, *(place for place in layers if place not in named)]

    def entries(self, place: str) -> int:
        """Return the number of stored values of the matrix at `place`."""
        return self._matrix(place).entries

    def var(self, place: str) -> pd.DataFrame:
        """Return the features' table that belongs to the matrix at `place`."""
        table: pd.DataFrame = self._read("raw/var" if place == "raw.X" else "var")
        return table

    def obs_columns(self) -> list[str]:
        """Return the names of the columns of the cells' table."""
        return [str(name) for name in self._file["obs"].attrs.get("column-order", ())]

    def obs(self, columns: Sequence[str]) -> pd.DataFrame:
        """Return columns of the cells' table, indexed by barcode."""
        return pd.DataFrame({name: self._column(name) for name in columns}, index=self._index())

    def rows(self, place: str, start: int, stop: int) -> Any:
        """Read rows ``[start, stop)`` of the matrix at `place` as CSR."""
        return self._matrix(place).rows(start, stop)

    def _index(self) -> pd.Index:
        if "" not in self._obs:
            key = self._file["obs"].attrs.get("_index", "_index")
            self._obs[""] = pd.Index(self._read(f"obs/{key}"))
        index: pd.Index = self._obs[""]
        return index

    def _column(self, name: str) -> Any:
        if name not in self._obs:
            if str(self._file["obs"].attrs.get("encoding-version", "")) == "0.1.0":
                # AnnData 0.7 kept categories aside; only the table as a whole can be read.
                table = self._read("obs")
                self._obs.update({str(column): table[column].array for column in table.columns})
            else:
                self._obs[name] = self._read(f"obs/{name}")
        return self._obs[name]

    def _read(self, key: str) -> Any:
        try:
            return read_elem(self._file[key])
        except (OSError, KeyError, ValueError, TypeError, RuntimeError, ad._io.utils.AnnDataReadError) as error:
            raise SourceError(f"{key} cannot be read: {error}.", where=self.url) from error

    def _matrix(self, place: str) -> H5Matrix:
        if place not in self._matrices:
            key = place.replace(".", "/") if place == "raw.X" else place
            if key not in self._file:
                raise SourceError(
                    f"There is no matrix at {place!r}.", where=self.url, fix=f"There are: {', '.join(self.places())}."
                )
            matrix = H5Matrix(self._file[key], f"{self.url}: {place}")
            if matrix.shape[0] != self.n_cells:
                raise SourceError(f"{place} has {matrix.shape[0]:,} rows, obs has {self.n_cells:,}.", where=self.url)
            self._matrices[place] = matrix
        return self._matrices[place]


def stamp(path: Path) -> str:
    """Return size and time of change of a file: if they are as before, so is the file."""
    try:
        found = path.stat()
    except OSError:
        return ""
    return f"{found.st_size}-{found.st_mtime_ns}"


def open_h5ad(path: Path, name: str) -> H5adSource | AnnDataSource:
    """Open an h5ad; a file older than AnnData 0.7 is read into memory, since only anndata knows its encodings.

    Raises
    ------
    SourceError
        See `H5adSource`.
    """
    with _open(path) as file:
        modern = all("encoding-type" in file[key].attrs for key in ("obs", "var"))
        if not modern:
            for place in ("X", "raw.X", "raw/X"):
                if place in file:
                    H5Matrix(file[place], f"{path}: {place}")
    if modern:
        return H5adSource(path, name)
    try:
        adata = ad.read_h5ad(path)
    except (OSError, ValueError, KeyError, TypeError, ad._io.utils.AnnDataReadError) as error:
        raise SourceError(f"The file cannot be read as h5ad: {error}", where=str(path)) from error
    return AnnDataSource(adata, name, url=str(path.absolute()), sha256=_sha256(path), stamp=stamp(path))


def _open(path: Path) -> h5py.File:
    fix = "Give an AnnData file as written by `adata.write_h5ad`."
    if not path.is_file():
        raise SourceError("The file does not exist.", where=str(path), fix="Check the path.")
    try:
        file = h5py.File(path, "r", locking=False)
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


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
