"""loom files: genes are rows and cells are columns, attributes are arrays beside the matrix."""

from __future__ import annotations

import html
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any

import h5py
import numpy.typing as npt
import pandas as pd
from scipy import sparse

from cellmill.errors import SourceError
from cellmill.ingestion.config import SourceConfig
from cellmill.ingestion.sources.base import NAMED_COUNTS
from cellmill.ingestion.sources.bombs import refuse_bombs
from cellmill.ingestion.sources.dense_rows import by_rows, is_tall, sparse_of
from cellmill.ingestion.sources.hdf5 import hdf5_names, open_hdf5
from cellmill.ingestion.sources.hdf5_texts import read_array, to_texts
from cellmill.ingestion.sources.matrix import block_bytes, native
from cellmill.ingestion.sources.modalities import with_modality
from cellmill.ingestion.sources.names import names_in
from cellmill.ingestion.sources.place import Place
from cellmill.ingestion.sources.starts import EvenStarts, Starts
from cellmill.ingestion.sources.stored_rows import StoredRows
from cellmill.ingestion.sources.translating import reading_hdf5, translated

BARCODES = ("CellID", "obs_names", "cell_id", "barcode", "barcodes", "Barcode", "cell_names", "index")
"""Attributes of columns that name the cells, the likeliest first."""
INDEX_OF_VAR = "var_names"
"""The attribute of rows in which anndata keeps the index of ``var``."""

_FIX = "Fetch the file again, or write it again with loompy."


class LoomSource:
    """Cells of a loom file, of any version of its specification.

    Attributes of several columns (coordinates) are as many columns of ``obs``, with numbers after their name.

    Parameters
    ----------
    place
        The file.
    name
        Name of the data set.

    Raises
    ------
    SourceError
        The file is damaged, or its attributes do not fit its matrix.
    """

    def __init__(self, place: Place, name: str) -> None:
        self.name, self.url, self.stamp = name, place.url, place.stamp
        self._place = place
        self._copies: dict[str, StoredRows] = {}
        self._file = open_hdf5(place)
        try:
            self._shape = self._matrix("X").shape
            self._cells, self._genes = self._attributes("col_attrs", 1), self._attributes("row_attrs", 0)
            if not self.n_cells:
                raise SourceError("There are no cells.", where=self.url)
        except BaseException:
            self._file.close()
            raise

    @cached_property
    def digest(self) -> str:
        """Digest of the file's bytes."""
        return self._place.digest

    def close(self) -> None:
        """Close the file."""
        for copy in self._copies.values():
            copy.close()
        self._file.close()

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return int(self._shape[1])

    @translated(reading_hdf5)
    def places(self) -> Sequence[str]:
        """Return the layers whose names say counts, the main matrix, and the other layers."""
        layers = [f"layers/{name}" for name in self._file.get("layers", {})]
        named = [place for place in layers if place.removeprefix("layers/").lower() in NAMED_COUNTS]
        return [*named, "X", *(place for place in layers if place not in named)]

    @translated(reading_hdf5)
    def starts(self, place: str) -> Starts:
        """Return where the values of each cell begin: loom is dense, and zeros count unless chunks are wide."""
        if is_tall(self._matrix(place), 1):
            return self._by_rows(place).starts
        return EvenStarts([self.n_cells], [int(self._shape[0])])

    @translated(reading_hdf5)
    def var(self, place: str) -> pd.DataFrame:
        """Return the attributes of rows; the index is the position, unless anndata wrote one."""
        self._matrix(place)
        columns = {name: self._values("row_attrs", *where) for name, where in self._genes.items()}
        index = pd.Index(columns.pop(INDEX_OF_VAR, range(self._shape[0]))).astype(str)
        return with_modality(pd.DataFrame(columns, index=index))

    def default_names(self, place: str) -> tuple[str, str | None]:
        """Return the attributes of rows that hold ids and symbols."""
        return names_in(self.var(place))

    def obs_columns(self) -> list[str]:
        """Return the names of the attributes of columns."""
        return [name for name in self._cells if name != self._barcode]

    @translated(reading_hdf5)
    def obs(self, columns: Sequence[str], start: int = 0, stop: int | None = None) -> pd.DataFrame:
        """Return rows ``[start, stop)`` of attributes of columns, indexed by barcode, or by number if there is none."""
        stop = self.n_cells if stop is None else stop
        found = {name: self._values("col_attrs", *self._cells[name], start, stop) for name in columns}
        if self._barcode is None:
            return pd.DataFrame(found, index=pd.Index([str(number) for number in range(start, stop)]))
        names = self._values("col_attrs", *self._cells[self._barcode], start, stop)
        return pd.DataFrame(found, index=pd.Index([str(name) for name in names]))

    @translated(reading_hdf5)
    def rows(self, place: str, start: int, stop: int) -> sparse.csr_matrix:
        """Read cells ``[start, stop)``."""
        if is_tall(self._matrix(place), 1):
            return self._by_rows(place).rows(start, stop)
        return sparse_of(self._block(place, (slice(None), slice(start, stop))).T)

    def _block(self, place: str, part: Any) -> npt.NDArray[Any]:
        try:
            return native(self._matrix(place)[part], f"{self.url}: {place}")
        except (OSError, RuntimeError) as error:
            raise SourceError(f"The matrix cannot be read: {error}.", where=f"{self.url}: {place}", fix=_FIX) from error

    def _by_rows(self, place: str) -> StoredRows:
        if place not in self._copies:
            identity = f"{self.url} {self.stamp} {place}"
            read = partial(self._block, place)
            self._copies[place] = by_rows(self._matrix(place), 1, read, identity, f"{self.url}: {place}")
        return self._copies[place]

    @translated(reading_hdf5)
    def blocks(self, place: str) -> dict[str, int]:
        """See `Blocks`."""
        return {"Decoding a chunk of the matrix": block_bytes(self._matrix(place))}

    @property
    def _barcode(self) -> str | None:
        return next((name for name in BARCODES if name in self._cells), None)

    def _matrix(self, place: str) -> h5py.Dataset:
        item = self._file.get("matrix" if place == "X" else place)
        if not isinstance(item, h5py.Dataset):
            raise SourceError(
                f"There is no matrix at {place!r}.", where=self.url, fix=f"There are: {', '.join(self.places())}."
            )
        if item.ndim != 2 or item.dtype.kind not in "biuf":
            raise SourceError(f"{item.name} is no matrix of numbers.", where=self.url, fix=_FIX)
        refuse_bombs(item, f"{self.url}: {place}")
        if place != "X" and item.shape != self._shape:
            raise SourceError(
                f"{place} has the shape {item.shape}, the matrix {self._shape}.", where=self.url, fix=_FIX
            )
        return item

    def _attributes(self, group: str, axis: int) -> dict[str, tuple[str, int | None]]:
        """Return the columns that attributes make: their array, and which column of it."""
        found: dict[str, tuple[str, int | None]] = {}
        for name, item in self._file[group].items() if group in self._file else ():
            if not isinstance(item, h5py.Dataset) or item.ndim not in (1, 2):
                continue
            if item.shape[0] != self._shape[axis]:
                raise SourceError(
                    f"{group}/{name} has {item.shape[0]:,} values, the matrix {self._shape[axis]:,}.",
                    where=self.url,
                    fix=_FIX,
                )
            if item.ndim == 1 or item.shape[1] == 1:
                found[name] = name, None
            else:
                found.update({f"{name}_{i + 1}": (name, i) for i in range(item.shape[1])})
        return found

    def _values(self, group: str, key: str, column: int | None, start: int = 0, stop: int | None = None) -> Any:
        values = read_array(self._file[group], key, self.url, start, stop)
        values = values if column is None else values[:, column]
        if values.dtype.kind in "SO":
            # The specification asks for ASCII, with other letters as entities of XML.
            texts = to_texts(values, f"{self.url}: {group}/{key}")
            return [html.unescape(text) if "&" in text else text for text in texts]
        return native(values)


class LoomFormat:
    """The format ``loom``."""

    name = "loom"

    def recognises(self, place: Place) -> bool:
        """Return whether a file has a matrix and attributes of rows and columns."""
        return {"matrix", "row_attrs", "col_attrs"} <= hdf5_names(place)

    def open(self, place: Place, name: str, config: SourceConfig) -> LoomSource:
        """Open a file."""
        with reading_hdf5(place.url):
            return LoomSource(place, name)


FORMAT = LoomFormat()
