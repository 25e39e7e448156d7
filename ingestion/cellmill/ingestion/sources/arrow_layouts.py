"""The two ways in which tables with a row for each cell hold counts: in lists, or in a column for each gene."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from scipy import sparse

from cellmill.errors import SourceError
from cellmill.ingestion.obs import CELLXGENE_COLUMNS
from cellmill.ingestion.sources.arrow_features import FeatureTable
from cellmill.ingestion.sources.arrow_parts import VALUES_AT_ONCE, Parts
from cellmill.ingestion.sources.list_starts import ListStarts, write_starts
from cellmill.ingestion.sources.modalities import with_modality
from cellmill.ingestion.sources.prepared import prepared
from cellmill.ingestion.sources.starts import EvenStarts, Starts

FEATURES = ("genes", "gene_ids", "gene_indices", "gene_idx", "indices", "features", "feature_indices", "feature_ids")
VALUES = ("expressions", "expression", "counts", "values", "data", "umis", "raw_counts")
"""Names of the columns of lists, the likeliest first."""


class Lists:
    """Counts in lists, one of features and one of values in each row.

    Parameters
    ----------
    parts
        The files.
    features, values
        The two columns.
    table
        What the features are; None if they are text.
    where
        For messages.
    identity
        Names the content, so that lists are counted once a machine.

    Raises
    ------
    SourceError
        The lists hold something else, or nothing says which genes they mean.
    ResourceError
        A list is too long for a task.
    """

    def __init__(
        self, parts: Parts, features: str, values: str, table: FeatureTable | None, where: str, identity: str
    ) -> None:
        self._parts, self._features, self._values, self._where = parts, features, values, where
        self._identity = identity
        self.taken = (features, values)
        is_text = pa.types.is_string(_of(parts, features)) or pa.types.is_large_string(_of(parts, features))
        if not is_text and not pa.types.is_integer(_of(parts, features)):
            raise SourceError(
                f"{features} holds lists of {_of(parts, features)}.",
                where=where,
                fix="Write ids of genes, or their numbers in a table of genes.",
            )
        if not (pa.types.is_integer(_of(parts, values)) or pa.types.is_floating(_of(parts, values))):
            raise SourceError(f"{values} holds lists of {_of(parts, values)}.", where=where, fix="Write numbers.")
        if table is None and not is_text:
            raise SourceError(
                f"{features} holds numbers, and no table says which genes these are.",
                where=where,
                fix="Name the table of genes (Parquet, CSV or TSV) with `features`.",
            )
        self._table = table if table is not None else FeatureTable(pd.DataFrame(index=self._distinct()))
        self._keys = self._table.texts if is_text else self._table.numbers
        self.var = with_modality(self._table.frame)

    @cached_property
    def starts(self) -> ListStarts:
        """Where the values of each cell begin: int64 [n_cells + 1]."""

        def make(folder: Path) -> None:
            write_starts(folder, self._parts.lengths(self.taken), VALUES_AT_ONCE, self._where)

        found = ListStarts(prepared(f"lists 1 {self._identity} {self._features} {self._values}", make))
        self._parts.beside.callback(found.close)
        return found

    def rows(self, start: int, stop: int) -> sparse.csr_matrix:
        """Read rows ``[start, stop)``."""
        where = f"{self._where}: cells {start} to {stop - 1}"
        # Text becomes numbers a few rows at a time, for it is much larger.
        found = [self._numbers(batch, where) for batch in self._batches(self.taken, start, stop)]
        if not found:
            return sparse.csr_matrix((stop - start, len(self.var)), dtype=np.float32)
        lengths, column, numbers = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
        indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        unknown = column < 0
        if unknown.any():
            # Tahoe-100M begins each cell with a token that is no gene, and marks it by a negative value.
            marks = np.zeros(column.size, bool)
            marks[indptr[:-1][np.diff(indptr) > 0]] = True
            marks &= unknown & (numbers < 0)
            if (bad := unknown & ~marks).any():
                example = self._example(int(np.flatnonzero(bad)[0]), start, stop)
                raise SourceError(
                    f"{int(bad.sum()):,} entries are of features that the table of genes does not have, such as "
                    f"{example!r}.",
                    where=where,
                    fix="Name the right table with `features`.",
                )
            kept = ~unknown
            indptr = np.concatenate([[0], np.cumsum(kept)])[indptr]
            column, numbers = column[kept], numbers[kept]
        shape = (stop - start, len(self.var))
        return sparse.csr_matrix((numbers, column.astype(np.int32), indptr), shape=shape)

    def _batches(self, columns: Sequence[str], start: int, stop: int) -> Iterator[pa.RecordBatch]:
        # No list is decoded before all are known to be of lengths that fit.
        return self._parts.batches(columns, start, stop, self.starts.rows_at_once)

    def _numbers(
        self, batch: pa.RecordBatch, where: str
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], npt.NDArray[Any]]:
        """Return the lengths of lists, and columns (-1 where there is none) and values of their entries."""
        features, values = (batch.column(name) for name in self.taken)
        lengths = pc.fill_null(pc.list_value_length(features), 0)
        if not lengths.equals(pc.fill_null(pc.list_value_length(values), 0)):
            raise SourceError(f"Lists of {self._features} and {self._values} have different lengths.", where=where)
        flat, data = _flat(features), _flat(values)
        if flat.null_count or data.null_count:
            raise SourceError("There are lists with gaps.", where=where, fix="Write NaN as 0, or leave it out.")
        column = pc.fill_null(pc.index_in(flat.cast(self._keys.type), value_set=self._keys), -1)
        # A copy, for the values that Arrow has are of whole batches.
        return lengths.to_numpy().astype(np.int64), column.to_numpy(), np.array(data.to_numpy(zero_copy_only=False))

    def _example(self, entry: int, start: int, stop: int) -> Any:
        """Return the feature of an entry of rows ``[start, stop)``."""
        for batch in self._batches([self._features], start, stop):
            flat = _flat(batch.column(0))
            if entry < len(flat):
                return flat[entry].as_py()
            entry -= len(flat)
        return None

    def _distinct(self) -> pd.Index:
        """Return all features that occur, in the order of their names."""
        found: set[str] = set()
        for batch in self._batches([self._features], 0, self._parts.n_rows):
            found.update(pc.unique(_flat(batch.column(0))).to_pylist())
        return pd.Index(sorted(found), dtype=object)


class Columns:
    """Counts in a column for each gene.

    Parameters
    ----------
    parts
        The files.
    obs
        Columns that are not counts.
    table
        What the features are; None takes all numeric columns.
    where
        For messages.

    Raises
    ------
    SourceError
        There is no such column.
    """

    def __init__(self, parts: Parts, obs: set[Any], table: FeatureTable | None, where: str) -> None:
        self._parts, self._where = parts, where
        numeric = [field.name for field in parts.schema if _is_number(field.type)]
        if table is None:
            kept = {*obs, *CELLXGENE_COLUMNS}
            self.taken = tuple(name for name in numeric if name not in kept)
            var = pd.DataFrame(index=pd.Index(self.taken, dtype=object))
        else:
            names = pd.Index(table.texts.to_pylist())
            self.taken = tuple(name for name in numeric if name in names)
            var = table.frame.iloc[names.get_indexer(pd.Index(self.taken))] if names.is_unique else table.frame.iloc[:0]
        if not len(var):
            raise SourceError(
                "There are neither lists of genes and counts nor columns of counts.",
                where=where,
                fix=f"Lists are called {', '.join(FEATURES[:3])}, ... and {', '.join(VALUES[:3])}, ...; columns of "
                "counts are numbers, and are those that `features` names, if it is set.",
            )
        self.var = with_modality(var)

    @cached_property
    def starts(self) -> Starts:
        """Where the values of each cell begin: int64 [n_cells + 1]."""
        return EvenStarts([self._parts.n_rows], [len(self.taken)])

    @property
    def blocks(self) -> dict[str, int]:
        """Bytes that reading any rows takes, since all columns are read side by side."""
        return {f"Reading {len(self.taken):,} columns side by side": self._parts.reading_bytes(self.taken)}

    def rows(self, start: int, stop: int) -> sparse.csr_matrix:
        """Read rows ``[start, stop)``."""
        table = self._parts.read(self.taken, start, stop)
        dtype = np.result_type(*{column.type.to_pandas_dtype() for column in table.columns})
        dense = np.empty((stop - start, len(self.taken)), np.float64 if dtype.kind == "f" else dtype)
        for number, column in enumerate(table.columns):
            if column.null_count:
                raise SourceError(
                    f"The column {self.taken[number]!r} has gaps.",
                    where=f"{self._where}: cells {start} to {stop - 1}",
                    fix="Write 0 where there is no count, or keep the column out of the counts with `obs`.",
                )
            dense[:, number] = column.to_numpy()
        return sparse.csr_matrix(dense)


def is_list(kind: pa.DataType) -> bool:
    """Return whether a type is one of lists."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _of(parts: Parts, column: str) -> Any:
    kind = parts.schema.field(column).type.value_type
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _flat(lists: pa.Array) -> pa.Array:
    """Return what is in lists, without an encoding by a dictionary."""
    flat = pc.list_flatten(lists)
    return flat.dictionary_decode() if pa.types.is_dictionary(flat.type) else flat
