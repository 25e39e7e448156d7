"""AnnData in a tree of groups and arrays, be it an HDF5 file or a zarr group: read by columns and blocks of rows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import pandas as pd
from scipy import sparse

from cellmill.errors import SourceError
from cellmill.ingestion.sources.base import NAMED_COUNTS
from cellmill.ingestion.sources.matrix import H5Matrix
from cellmill.ingestion.sources.modalities import with_modality
from cellmill.ingestion.sources.names import names_in
from cellmill.ingestion.sources.obsm import PREFIX, TableMatrix, names_of_columns
from cellmill.ingestion.sources.place import Place
from cellmill.ingestion.sources.remote import is_web
from cellmill.ingestion.sources.starts import Starts
from cellmill.ingestion.sources.table import Table
from cellmill.ingestion.sources.translating import reading_hdf5, translated
from cellmill.ingestion.sources.tree import Tree

_CATEGORIES = "_categories"


class AnnDataGroupSource:
    """Cells of an AnnData in an open file or group, of any encoding since 0.5.

    Parameters
    ----------
    place
        Where it is.
    name
        Name of the data set.
    tree
        Its groups and arrays.

    Raises
    ------
    SourceError
        It has no cells, or its tables cannot be read.
    """

    def __init__(self, place: Place, name: str, tree: Tree) -> None:
        self.name, self.url, self.stamp = name, place.url, place.stamp
        self._place, self._tree = place, tree
        self._tables: dict[str, Table] = {}
        self._vars: dict[str, pd.DataFrame] = {}
        self._matrices: dict[str, H5Matrix | TableMatrix] = {}
        self._table("obs").check_names()
        if self.n_cells == 0:
            raise SourceError("There are no cells.", where=self.url)

    @cached_property
    def digest(self) -> str:
        """Digest of its bytes; all of them are read."""
        return self._place.digest

    def close(self) -> None:
        """Close the file."""
        self._tree.close()

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return self._table("obs").n_rows

    @translated(reading_hdf5)
    def places(self) -> Sequence[str]:
        """Return the places where counts may be, the likeliest first."""
        layers = [f"layers/{name}" for name in self._tree.names("layers")] if "layers" in self._tree else []
        named = [place for place in layers if place.removeprefix("layers/").lower() in NAMED_COUNTS]
        own = [place for place in ("raw.X", "X") if self._key(place) in self._tree]
        return [*named, *own, *(place for place in layers if place not in named)]

    @translated(reading_hdf5)
    def tables(self) -> list[str]:
        """Return the places of ``obsm``."""
        return [f"{PREFIX}{name}" for name in self._tree.names("obsm")] if "obsm" in self._tree else []

    @translated(reading_hdf5)
    def starts(self, place: str) -> Starts:
        """Return where the values of each cell begin among all that are stored at `place`."""
        return self._matrix(place).starts

    @translated(reading_hdf5)
    def var(self, place: str) -> pd.DataFrame:
        """Return the features' table that belongs to the matrix at `place`."""
        if place.startswith(PREFIX):
            return self._names_of(place)
        key = self._var_key(place)
        if key not in self._vars:
            self._vars[key] = with_modality(self._table(key).frame())
        return self._vars[key]

    def default_names(self, place: str) -> tuple[str, str | None]:
        """Return the columns of `var` with ids and symbols."""
        return names_in(self.var(place))

    @translated(reading_hdf5)
    def obs_columns(self) -> list[str]:
        """Return the names of the columns of the cells' table."""
        return list(self._table("obs").columns)

    @translated(reading_hdf5)
    def obs(self, columns: Sequence[str], start: int = 0, stop: int | None = None) -> pd.DataFrame:
        """Return rows ``[start, stop)`` of columns of the cells' table, indexed by barcode."""
        table = self._table("obs")
        return pd.DataFrame({name: table.column(name, start, stop) for name in columns}, index=table.index(start, stop))

    @translated(reading_hdf5)
    def rows(self, place: str, start: int, stop: int) -> sparse.csr_matrix:
        """Read rows ``[start, stop)`` of the matrix at `place`."""
        return self._matrix(place).rows(start, stop)

    @property
    def is_folder(self) -> bool:
        """Whether its files lie in a folder or below a prefix of an object store."""
        return self._place.is_dir and not is_web(self._place.location)

    @translated(reading_hdf5)
    def stored(self, place: str) -> tuple[str, str]:
        """Return the group of the matrix at `place`, and how it lies: ``csr``, ``csc``, ``dense`` or ``table``."""
        matrix = self._matrix(place)
        return self._key(place), matrix.layout if isinstance(matrix, H5Matrix) else "table"

    def _key(self, place: str) -> str:
        """Return where a place is in the file; before AnnData 0.7, ``raw.X`` was a name."""
        return "raw/X" if place == "raw.X" and "raw.X" not in self._tree else place

    def _var_key(self, place: str) -> str:
        return "var" if place != "raw.X" else next(key for key in ("raw/var", "raw.var", "var") if key in self._tree)

    def _table(self, key: str) -> Table:
        if key not in self._tables:
            self._tables[key] = Table(self._tree[key], f"{self.url}: {key}", self._tree, self._categories(key))
        return self._tables[key]

    def _categories(self, key: str) -> dict[str, Any]:
        """Return the categories of an array of records, which AnnData kept in ``uns`` before 0.7."""
        if not hasattr(self._tree[key], "shape") or "uns" not in self._tree:
            return {}
        named = [name for name in self._tree.names("uns") if name.endswith(_CATEGORIES)]
        return {name.removesuffix(_CATEGORIES): self._tree[f"uns/{name}"] for name in named}

    def _names_of(self, place: str) -> pd.DataFrame:
        """Return the features of a table of ``obsm``."""
        if place not in self._vars:
            matrix = self._matrix(place)
            if isinstance(matrix, TableMatrix):
                self._vars[place] = pd.DataFrame(index=pd.Index(self._table(place).columns, dtype=object))
            else:
                self._vars[place] = names_of_columns(matrix.shape[1], self._lists(matrix.shape[1]))
        return self._vars[place]

    def _lists(self, n: int) -> dict[str, Any]:
        """Return the lists of `n` in ``uns``."""
        found = {}
        for name in self._tree.names("uns") if "uns" in self._tree else ():
            item = self._tree[f"uns/{name}"]
            if getattr(item, "shape", None) == (n,):
                self._tree.check(item, f"{self.url}: uns/{name}")
                found[name] = item[:]
        return found

    @translated(reading_hdf5)
    def blocks(self, place: str) -> dict[str, int]:
        """Return the bytes of the chunks of a matrix that are decoded as a whole, by what they are."""
        matrix = self._matrix(place)
        return matrix.blocks

    @translated(reading_hdf5)
    def obs_blocks(self, columns: Sequence[str]) -> dict[str, int]:
        """Return the bytes of the chunks of the cells' table that are decoded as a whole, by what they are."""
        return self._table("obs").blocks(columns)

    def _matrix(self, place: str) -> H5Matrix | TableMatrix:
        if place not in self._matrices:
            key = self._key(place)
            if key not in self._tree:
                raise SourceError(
                    f"There is no matrix at {place!r}.", where=self.url, fix=f"There are: {', '.join(self.places())}."
                )
            matrix = self._open(place, key)
            if matrix.shape[0] != self.n_cells:
                raise SourceError(f"{place} has {matrix.shape[0]:,} rows, obs has {self.n_cells:,}.", where=self.url)
            features = matrix.shape[1] if place.startswith(PREFIX) else self._table(self._var_key(place)).n_rows
            if matrix.shape[1] != features:
                raise SourceError(f"{place} has {matrix.shape[1]:,} columns, var has {features:,}.", where=self.url)
            self._matrices[place] = matrix
        return self._matrices[place]

    def _open(self, place: str, key: str) -> H5Matrix | TableMatrix:
        item, where = self._tree[key], f"{self.url}: {place}"
        if place.startswith(PREFIX) and item.attrs.get("encoding-type") == "dataframe":
            return TableMatrix(self._table(key), where)
        # Without a stamp nothing says that a copy made earlier is of the same content.
        identity = f"{self.url} {self.stamp} {key}" if self.stamp else ""
        return H5Matrix(item, where, check=self._tree.check_whole, identity=identity)
