"""h5ad files: names and metadata at once, the matrix by blocks of rows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import anndata as ad
import h5py
import pandas as pd
from anndata.io import read_elem

from cellmill.errors import SourceError
from cellmill.ingestion.config import SourceConfig
from cellmill.ingestion.sources.base import NAMED_COUNTS, Source
from cellmill.ingestion.sources.hdf5 import hdf5_names, open_hdf5
from cellmill.ingestion.sources.matrix import H5Matrix
from cellmill.ingestion.sources.memory import AnnDataSource
from cellmill.ingestion.sources.modalities import with_modality
from cellmill.ingestion.sources.names import names_in
from cellmill.ingestion.sources.place import Place


class H5adSource:
    """Cells of an h5ad file; CSR, CSC and dense matrices, of AnnData 0.7 and later.

    Parameters
    ----------
    place
        The file.
    name
        Name of the data set.

    Raises
    ------
    SourceError
        The file is missing, is not HDF5, or is HDF5 but no AnnData.
    """

    def __init__(self, place: Place, name: str) -> None:
        self.name = name
        self.url = place.url
        self._place = place
        self._file = _open(place)
        self.stamp = place.stamp
        self._obs: dict[str, Any] = {}
        self._var: dict[str, pd.DataFrame] = {}
        self._matrices: dict[str, H5Matrix] = {}
        if self.n_cells == 0:
            raise SourceError("There are no cells.", where=self.url)

    @cached_property
    def sha256(self) -> str:
        """Digest of the file's bytes; all of them are read."""
        return self._place.sha256

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
        if place not in self._var:
            self._var[place] = with_modality(self._read("raw/var" if place == "raw.X" else "var"))
        return self._var[place]

    def default_names(self, place: str) -> tuple[str, str | None]:
        """Return the columns of `var` with ids and symbols."""
        return names_in(self.var(place))

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


class H5ad:
    """AnnData in an HDF5 file; a file older than AnnData 0.7 is read into memory, since only anndata knows it."""

    name = "h5ad"

    def recognises(self, place: Place) -> bool:
        """Return whether it is HDF5 with tables of cells and features."""
        return {"obs", "var"} <= hdf5_names(place)

    def open(self, place: Place, name: str, config: SourceConfig) -> Source:
        """Open it.

        Raises
        ------
        SourceError
            See `H5adSource`.
        """
        with _open(place) as file:
            modern = all("encoding-type" in file[key].attrs for key in ("obs", "var"))
            if not modern:
                for key in ("X", "raw.X", "raw/X"):
                    if key in file:
                        H5Matrix(file[key], f"{place.url}: {key}")
        if modern:
            return H5adSource(place, name)
        try:
            adata = ad.read_h5ad(place.local_path())
        except (OSError, ValueError, KeyError, TypeError, ad._io.utils.AnnDataReadError) as error:
            raise SourceError(f"The file cannot be read as h5ad: {error}", where=place.url) from error
        return AnnDataSource(adata, name, url=place.url, sha256=place.sha256, stamp=place.stamp)


FORMAT = H5ad()


def _open(place: Place) -> h5py.File:
    file = open_hdf5(place)
    missing = [key for key in ("obs", "var") if key not in file]
    if missing:
        file.close()
        raise SourceError(
            f"The file is HDF5 but no h5ad: it has no {' and no '.join(missing)}.",
            where=place.url,
            fix="Give an AnnData file as written by `adata.write_h5ad`.",
        )
    return file
