"""Columns of the selected cells of one shard: what travels with the cells beside their counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cellmill.atlas import Selection

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

Labels = Mapping[str, tuple[str, Sequence[str]]]
"""Name of each label, the column it comes from, and its classes."""


@dataclass(frozen=True)
class ShardColumns:
    """Selected cells of one shard.

    Attributes
    ----------
    rows : int64 [n]
        Their rows, ascending.
    cell_id : uint64 [n]
        Their ids.
    labels : int32 [n] each
        Codes of their classes, -1 for a value that is none of them.
    """

    rows: I64
    cell_id: U64
    labels: dict[str, I32]

    @property
    def nbytes(self) -> int:
        """Memory that they take."""
        return self.rows.nbytes + self.cell_id.nbytes + sum(codes.nbytes for codes in self.labels.values())

    def take(self, cells: I64) -> ShardColumns:
        """Return some of the cells, by their positions."""
        return ShardColumns(
            rows=self.rows[cells],
            cell_id=self.cell_id[cells],
            labels={name: found[cells] for name, found in self.labels.items()},
        )


def read_columns(selection: Selection, shard: int, labels: Labels, cells: I64 | None = None) -> ShardColumns:
    """Read the columns of a selection's i-th shard.

    Parameters
    ----------
    selection, shard
        The selection, and which of its shards.
    labels
        Columns to read beside the ids.
    cells : int64 [n], optional
        Which of the selected cells, by their positions; all by default. What is far from them is not read.

    Raises
    ------
    IntegrityError
        Its metadata is missing or damaged.
    """
    table = selection.table(shard, ["cell_id", *dict.fromkeys(column for column, _ in labels.values())], cells)
    rows = selection.rows(shard)
    chosen = np.arange(table.num_rows) if cells is None else cells
    return ShardColumns(
        rows=chosen if rows is None else rows[chosen].astype(np.int64),
        cell_id=np.asarray(table.column("cell_id").to_numpy(), np.uint64),
        labels={name: codes(table.column(column), classes) for name, (column, classes) in labels.items()},
    )


def as_text(values: Sequence[Any]) -> list[str]:
    """Return values of a column as the classes of `codes` are written."""
    texts: list[str] = pc.cast(pa.array(values), pa.string()).to_pylist()
    return texts


def class_counts(selection: Selection, column: str) -> dict[str, int]:
    """Return how many selected cells each class of a column has, classes written as `codes` reads them."""
    counts = {value: n for value, n in selection.value_counts(column).items() if value is not None}
    found: Counter[str] = Counter()
    for text, n in zip(as_text(list(counts)), counts.values(), strict=True):
        found[text] += n
    return dict(found)


def codes(column: pa.ChunkedArray, classes: Sequence[str]) -> I32:
    """Return the position of each value among the classes, -1 where it is none of them: int32 [n]."""
    # Numbers of single precision are written as Python reads them.
    exact = pc.cast(column, pa.float64()) if pa.types.is_floating(column.type) else column
    index: Any = pc.index_in(pc.cast(exact, pa.string()), value_set=pa.array(list(classes), pa.string()))
    found: I32 = pc.fill_null(index, -1).to_numpy().astype(np.int32)
    return found
