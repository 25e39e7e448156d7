"""Harmonised counts as plain arrays in narrow dtypes, and moving rows of them without copies in between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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

    def take(self, rows: I64) -> Counts:
        """Return rows in the order given, in the narrowest dtypes."""
        return gather([self], np.zeros(rows.size, np.int64), rows)

    def slice(self, start: int, stop: int) -> Counts:
        """Return neighbouring rows; entries are not copied."""
        first, last = int(self.indptr[start]), int(self.indptr[stop])
        own = self.indptr[start : stop + 1] - first
        return Counts(own, self.indices[first:last], self.data[first:last], self.n_features)


def gather(parts: Sequence[Counts], part: I64, row: I64) -> Counts:
    """Return rows of several parts in one order, in the narrowest dtypes.

    Parameters
    ----------
    parts
        Of the same features.
    part, row : int64 [n]
        Where each row of the result comes from.
    """
    lengths = np.zeros(row.size, np.int64)
    for number, counts in enumerate(parts):
        mine = part == number
        lengths[mine] = np.diff(counts.indptr)[row[mine]]
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    n_features = parts[0].n_features
    largest = max((int(counts.data.max(initial=0)) for counts in parts), default=0)
    indices = np.empty(int(indptr[-1]), index_dtype(n_features))
    data = np.empty(int(indptr[-1]), count_dtype(largest))
    for number, counts in enumerate(parts):
        mine = np.flatnonzero(part == number)
        _place(counts.indptr, counts.indices, counts.data, row[mine], indptr[mine], indices, data)
    return Counts(indptr, indices, data, n_features)


@compiled
def _place(
    indptr: I64,
    indices: npt.NDArray[Any],
    data: npt.NDArray[Any],
    rows: I64,
    places: I64,
    out_indices: npt.NDArray[Any],
    out_data: npt.NDArray[Any],
) -> None:
    for i in range(rows.size):
        position = places[i]
        for entry in range(indptr[rows[i]], indptr[rows[i] + 1]):
            out_indices[position] = indices[entry]
            out_data[position] = data[entry]
            position += 1
