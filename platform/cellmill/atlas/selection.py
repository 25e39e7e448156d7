"""A selection: which cells of a snapshot a predicate keeps, as row numbers by shard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cellmill.atlas.cells import read_cells
from cellmill.atlas.entry import ShardEntry
from cellmill.errors import ConfigError

if TYPE_CHECKING:
    from cellmill.atlas.snapshot import Snapshot


@dataclass(frozen=True)
class Selection:
    """Cells of a snapshot.

    Attributes
    ----------
    snapshot
        The snapshot they are of.
    where
        The predicate that chose them; None means all.
    shards
        The shards that hold at least one of them, in the snapshot's order.
    counts : int64 [n_shards]
        How many each holds.
    """

    snapshot: Snapshot
    where: str | None
    shards: tuple[ShardEntry, ...]
    counts: npt.NDArray[np.int64]
    _rows: tuple[npt.NDArray[np.uint32] | None, ...]

    @property
    def n_cells(self) -> int:
        """Number of selected cells."""
        return int(self.counts.sum())

    def rows(self, shard: int) -> npt.NDArray[np.uint32] | None:
        """Return the selected rows of a shard, ascending; None means all of them."""
        return self._rows[shard]

    def table(self, shard: int, columns: list[str] | None = None) -> pa.Table:
        """Return the metadata of the selected cells of a shard."""
        table = read_cells(self.snapshot.storage, self.shards[shard], columns)
        rows = self._rows[shard]
        return table if rows is None else table.take(pa.array(rows))

    def column(self, name: str) -> list[pa.ChunkedArray]:
        """Return one column of the selected cells, by shard.

        Raises
        ------
        ConfigError
            A shard does not have the column.
        """
        arrays = []
        for shard, entry in enumerate(self.shards):
            table = self.table(shard, [name])
            if name not in table.column_names:
                raise ConfigError(
                    f"The data set {entry.dataset!r} has no column {name!r}.",
                    where=self.snapshot.storage.url,
                    fix=f"Columns: {', '.join(self.snapshot.columns())}.",
                )
            arrays.append(table[name])
        return arrays
