"""Tables of cells and features as AnnData stores them since 0.5, in HDF5 and in zarr, by columns and ranges of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from cellmill.errors import SourceError
from cellmill.ingestion.sources.holding import hold, text_bytes
from cellmill.ingestion.sources.matrix import UNREADABLE
from cellmill.ingestion.sources.tree import Tree

_LOOK, _FEW = 32, 4096
_ARRAYS = ("codes", "values", "mask")
_FIX = "Read the file with anndata and write it again."


class Table:
    """A table in an open HDF5 file or zarr group.

    Parameters
    ----------
    item
        A group of columns (AnnData 0.7 and later), or one array of records (before).
    where
        File and place, for messages.
    tree
        What it is in; asked before an array is read.
    categories
        For records, which hold codes: the categories of columns that have them, kept elsewhere in the file.

    Raises
    ------
    SourceError
        It is no table.
    """

    def __init__(self, item: Any, where: str, tree: Tree, categories: Mapping[str, Any] | None = None) -> None:
        self._item, self._where, self._tree = item, where, tree
        self._categories = categories or {}
        self._records = hasattr(item, "shape")
        self._read_categories: dict[str, pd.Index] = {}
        if self._records:
            names = item.dtype.names
            if not names or len(item.shape) != 1:
                raise self._error("it is an array, but not of records")
            self._index, self.columns = names[0], list(names[1:])
        else:
            self._index = _text(item.attrs.get("_index", "_index"))
            if self._index not in item:
                raise self._error(f"it has no index {self._index!r}")
            if "column-order" not in item.attrs:
                raise self._error("it does not say which columns it has")
            self.columns = [_text(name) for name in item.attrs["column-order"]]
        self.n_rows = int(self._length(self._index))

    def check_names(self) -> None:
        """Refuse a table whose names are not there as a whole: an empty name is never right.

        Raises
        ------
        SourceError
            As said.
        """
        item = self._item if self._records else self._item[self._index]
        if hasattr(item, "shape"):
            self._tree.check_whole(item, self._where)

    def index(self, start: int = 0, stop: int | None = None) -> pd.Index:
        """Return the names of rows ``[start, stop)``."""
        self.check_names()
        names: pd.Index = pd.Index(self.column(self._index, start, stop))
        return names

    def column(self, name: str, start: int = 0, stop: int | None = None) -> Any:
        """Return rows ``[start, stop)`` of a column as an array of numpy or pandas.

        Raises
        ------
        SourceError
            There is no such column, it cannot be read, or it is of a kind that is not known.
        """
        if name != self._index and name not in self.columns:
            raise self._error(f"it has no column {name!r}")
        rows = slice(start, self.n_rows if stop is None else stop)
        try:
            values = self._of_records(name, rows) if self._records else self._of_group(name, rows)
            if len(values) != len(range(self.n_rows)[rows]):
                raise ValueError(f"it has not {self.n_rows:,} rows, as the index has")
            return values
        except (*UNREADABLE, KeyError, TypeError) as error:
            raise self._error(f"the column {name!r} cannot be read: {str(error) or type(error).__name__}") from error

    def blocks(self, columns: Sequence[str]) -> dict[str, int]:
        """Return what the chunks of the index and of columns take while they are decoded as a whole, by what they are.

        Raises
        ------
        SourceError
            One of them claims more than is there.
        """
        if self._records:
            return {"Decoding a chunk of the table": self._tree.chunk_bytes(self._item, self._where)}
        found = {}
        for name in dict.fromkeys([self._index, *columns]):
            item = self._item[name]
            arrays = [item] if hasattr(item, "shape") else [item[part] for part in _ARRAYS if part in item]
            sizes = [self._tree.chunk_bytes(array, self._where) for array in arrays]
            found[f"Decoding a chunk of {name!r}"] = max(sizes, default=0)
        return found

    def frame(self) -> pd.DataFrame:
        """Return the whole table.

        Raises
        ------
        ResourceError
            It does not fit into a task.
        """
        names = [self._index, *self.columns]
        hold(f"The table of {self.n_rows:,} rows and {len(names):,} columns", sum(map(self._bytes, names)), self._where)
        return pd.DataFrame({name: self.column(name) for name in self.columns}, index=self.index())

    def _bytes(self, name: str) -> int:
        """Return what a whole column takes in memory, without its categories."""
        if self._records:
            field = self._item.dtype[name]
            return self.n_rows * field.itemsize if field.kind in "biuf" else text_bytes(self.n_rows, self._look(name))
        item = self._item[name]
        array = next((item[part] for part in ("codes", "values") if not hasattr(item, "shape") and part in item), item)
        numeric = hasattr(array, "dtype") and array.dtype.kind in "biuf"
        return self.n_rows * int(array.dtype.itemsize) if numeric else text_bytes(self.n_rows, self._look(name))

    def _look(self, name: str) -> Any:
        return self.column(name, 0, min(_LOOK, self.n_rows))

    def _of_records(self, name: str, rows: slice) -> Any:
        self._tree.check_whole(self._item, self._where)
        fields = self._item.fields(name) if hasattr(self._item, "fields") else None
        values = _plain(fields[rows] if fields is not None else self._item[rows][name])
        if name in self._categories and values.dtype.kind in "iu":
            return self._coded(name, values, self._categories[name], ordered=False)
        return values

    def _of_group(self, name: str, rows: slice) -> Any:
        item = self._item[name]
        kind = _text(item.attrs.get("encoding-type", ""))
        if hasattr(item, "shape"):
            values = self._values(item, rows)
            if "categories" not in item.attrs:
                return values
            # AnnData 0.7: codes in place of the column, categories beside the columns.
            reference = item.attrs["categories"]
            where = _text(reference) if isinstance(reference, str | bytes) else reference
            categories = self._item[where]
            return self._coded(name, values, categories, ordered=bool(categories.attrs.get("ordered", False)))
        if kind == "categorical":
            codes = self._values(item["codes"], rows)
            return self._coded(name, codes, item["categories"], ordered=bool(item.attrs.get("ordered", False)))
        if kind in ("nullable-integer", "nullable-boolean", "nullable-string-array"):
            values, mask = self._values(item["values"], rows), self._values(item["mask"], rows).astype(bool)
            if kind == "nullable-integer":
                return pd.arrays.IntegerArray(values, mask)
            if kind == "nullable-boolean":
                return pd.arrays.BooleanArray(values.astype(bool), mask)
            values = values.astype(object)
            values[mask] = None
            return values
        raise ValueError(f"its kind {kind!r} is not known")

    def _coded(self, name: str, codes: npt.NDArray[Any], categories: Any, *, ordered: bool) -> pd.Categorical:
        if name not in self._read_categories:
            found = self._item_values(categories, name)
            self._read_categories[name] = pd.Index(np.atleast_1d(found))
        known = self._read_categories[name]
        if codes.size and not -1 <= int(codes.min()) <= int(codes.max()) < len(known):
            raise ValueError(f"it has codes beyond its {len(known)} categories")
        return pd.Categorical.from_codes(codes, known, ordered=ordered)

    def _item_values(self, item: Any, name: str) -> npt.NDArray[Any]:
        array = item if hasattr(item, "shape") else item["values"]
        n = int(array.shape[0]) if array.shape else 1
        if n > _FEW:
            numeric = array.dtype.kind in "biuf"
            # Of text, as the file has it and as Python does.
            text = 0 if numeric else 2 * text_bytes(n, self._values(array, slice(0, _LOOK)))
            hold(f"The {n:,} categories of {name!r}", text or n * int(array.dtype.itemsize), self._where)
        if hasattr(item, "shape"):
            self._tree.check_whole(item, self._where)
            return self._values(item, slice(None) if item.shape else ())
        mask = self._values(item["mask"], slice(None)).astype(bool)
        values = self._values(item["values"], slice(None))
        if mask.any():
            raise ValueError("a category is missing")
        return values

    def _values(self, item: Any, rows: Any) -> npt.NDArray[Any]:
        self._tree.check(item, self._where)
        if len(item.shape) > 1:
            raise ValueError(f"it has {len(item.shape)} dimensions")
        return _plain(item[rows])

    def _length(self, name: str) -> int:
        if self._records:
            return int(self._item.shape[0])
        item = self._item[name]
        for part in ("codes", "values"):
            if not hasattr(item, "shape") and part in item:
                item = item[part]
        if not hasattr(item, "shape") or len(item.shape) != 1:
            raise self._error("its index is no list of names")
        return int(item.shape[0])

    def _error(self, what: str) -> SourceError:
        return SourceError(f"The table cannot be read: {what}.", where=self._where, fix=_FIX)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _plain(values: Any) -> npt.NDArray[Any]:
    """Return values as numbers, booleans or objects that are text.

    Raises
    ------
    ValueError
        They are something else.
    """
    found = np.asarray(values)
    if found.dtype.kind in "biuf":
        return found.astype(found.dtype.newbyteorder("="), copy=False)
    if found.dtype.kind == "S":
        return _decoded(found.ravel().tolist(), found.shape)
    if found.dtype.kind in "UT":
        return found.astype(object)
    if found.dtype.kind == "O":
        flat = found.ravel().tolist()
        kind = pd.api.types.infer_dtype(found, skipna=False)
        if kind == "string":
            return found
        if kind == "bytes":
            return _decoded(flat, found.shape)
        if all(value is None or isinstance(value, str | bytes) for value in flat):
            return _decoded(flat, found.shape)
    raise ValueError(f"it holds {found.dtype}, neither numbers nor text")


def _decoded(values: list[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    try:
        # Names of a million cells are read this way, and few are not UTF-8.
        found = pa.array(values, pa.binary()).cast(pa.string()).to_numpy(zero_copy_only=False)
        return np.asarray(found, object).reshape(shape)
    except pa.ArrowException:
        pass
    out = np.empty(len(values), dtype=object)
    # Files before AnnData 0.7 may hold text in the encoding of their machine.
    for i, value in enumerate(values):
        if isinstance(value, bytes):
            try:
                out[i] = value.decode("utf-8")
            except UnicodeDecodeError:
                out[i] = value.decode("latin-1")
        else:
            out[i] = value
    return out.reshape(shape)
