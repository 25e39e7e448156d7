"""Columns of the selected cells of one shard: what travels with the cells beside their counts."""

from __future__ import annotations

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
    """The selected cells of one shard.

    Attributes
    ----------
    rows : int64 [n] or None
        Their rows, ascending; None for all rows of the shard.
    cell_id : uint64 [n]
        Their ids.
    labels : int32 [n] each
        Codes of their classes, -1 for a value that is none of them.
    """

    rows: I64 | None
    cell_id: U64
    labels: dict[str, I32]

    @property
    def nbytes(self) -> int:
        """Memory that they take."""
        rows = 0 if self.rows is None else self.rows.nbytes
        return rows + self.cell_id.nbytes + sum(codes.nbytes for codes in self.labels.values())


def read_columns(selection: Selection, shard: int, labels: Labels) -> ShardColumns:
    """Read the columns of a selection's i-th shard.

    Raises
    ------
    IntegrityError
        Its metadata is missing or damaged.
    """
    table = selection.table(shard, ["cell_id", *dict.fromkeys(column for column, _ in labels.values())])
    rows = selection.rows(shard)
    return ShardColumns(
        rows=None if rows is None else rows.astype(np.int64),
        cell_id=np.asarray(table.column("cell_id").to_numpy(), np.uint64),
        labels={name: codes(table.column(column), classes) for name, (column, classes) in labels.items()},
    )


def codes(column: pa.ChunkedArray, classes: Sequence[str]) -> I32:
    """Return the position of each value among the classes, -1 where it is none of them: int32 [n]."""
    index: Any = pc.index_in(pc.cast(column, pa.string()), value_set=pa.array(list(classes), pa.string()))
    found: I32 = pc.fill_null(index, -1).to_numpy().astype(np.int32)
    return found
