"""Harmonised counts as plain arrays in narrow dtypes, and rows of them in another order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from cellmill.atlas.jit import compiled
from cellmill.atlas.layout import count_dtype, index_dtype

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Counts:
    """Counts of cells over features, in compressed rows.

    Attributes
    ----------
    indptr : int64 [n + 1]
        Where each cell begins in the other two.
    indices : uint16 or uint32 [nnz]
        Features, ascending within a cell.
    data : uint8, uint16 or uint32 [nnz]
        Counts, above zero.
    n_features
        Number of features.
    """

    indptr: I64
    indices: npt.NDArray[Any]
    data: npt.NDArray[Any]
    n_features: int

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return self.indptr.size - 1

    @cached_property
    def largest(self) -> int:
        """The largest count."""
        return int(self.data.max(initial=0))


@dataclass(frozen=True)
class Rows:
    """Rows of several parts, in an order of their own; nothing is copied before it is asked for.

    Parameters
    ----------
    parts
        Of the same features.
    part, row : int64 [n]
        Where each row comes from.
    """

    parts: Sequence[Counts]
    part: I64
    row: I64

    @cached_property
    def lengths(self) -> I64:
        """Number of entries of each row: int64 [n]."""
        lengths = np.zeros(self.row.size, np.int64)
        for number, mine, rows in self._by_part(slice(None)):
            lengths[mine] = np.diff(self.parts[number].indptr)[rows]
        return lengths

    @property
    def index_dtype(self) -> np.dtype[Any]:
        """Narrowest dtype of the features."""
        return index_dtype(self.parts[0].n_features)

    @property
    def count_dtype(self) -> np.dtype[Any]:
        """Narrowest dtype that holds all counts of the parts."""
        return count_dtype(max((counts.largest for counts in self.parts), default=0))

    def take(self, order: I64) -> Rows:
        """Return some of the rows, in the order given."""
        return Rows(self.parts, self.part[order], self.row[order])

    def indices(self, at_once: int) -> Iterator[npt.NDArray[Any]]:
        """Yield the features of all entries, row after row, about `at_once` of them at a time."""
        return self._stream("indices", self.index_dtype, at_once)

    def data(self, at_once: int) -> Iterator[npt.NDArray[Any]]:
        """Yield the counts of all entries, row after row, about `at_once` of them at a time."""
        return self._stream("data", self.count_dtype, at_once)

    def _stream(self, name: str, dtype: np.dtype[Any], at_once: int) -> Iterator[npt.NDArray[Any]]:
        ends = np.cumsum(self.lengths)
        for start, stop in ranges(ends, at_once):
            offset = int(ends[start - 1]) if start else 0
            places = ends[start:stop] - self.lengths[start:stop] - offset
            out = np.empty(int(ends[stop - 1]) - offset, dtype)
            for number, mine, rows in self._by_part(slice(start, stop)):
                counts = self.parts[number]
                copy_rows(counts.indptr, getattr(counts, name), rows, places[mine], out)
            yield out

    def _by_part(self, rows: slice) -> Iterator[tuple[int, I64, I64]]:
        """Yield each part, the positions of its rows among `rows`, and which rows of it they are."""
        part, row = self.part[rows], self.row[rows]
        order = np.argsort(part, kind="stable")
        numbers, starts = np.unique(part[order], return_index=True)
        for number, mine in zip(numbers.tolist(), np.split(order, starts[1:]), strict=True):
            yield number, mine, row[mine]


def ranges(ends: I64, limit: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of neighbours that weigh at most `limit`, or one that weighs more by itself.

    Parameters
    ----------
    ends : int64 [n]
        Weight of all up to each, including it.
    limit
        Weight of a range.
    """
    start = 0
    while start < ends.size:
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + limit, side="right")))
        yield start, stop
        start = stop


@compiled
def copy_rows(indptr: I64, values: npt.NDArray[Any], rows: I64, places: I64, out: npt.NDArray[Any]) -> None:
    """Copy the entries of rows to their places."""
    for i in range(rows.size):
        first, last = indptr[rows[i]], indptr[rows[i] + 1]
        source = values[first:last]
        target = out[places[i] : places[i] + last - first]
        for entry in range(source.size):
            target[entry] = source[entry]


@compiled
def move_rows(values: npt.NDArray[Any], source: I64, begins: I64, out: npt.NDArray[Any]) -> None:
    """Copy the entries of rows from where `source` says to where `begins` says."""
    for i in range(source.size):
        n = begins[i + 1] - begins[i]
        piece = values[source[i] : source[i] + n]
        target = out[begins[i] : begins[i] + n]
        for entry in range(piece.size):
            target[entry] = piece[entry]
