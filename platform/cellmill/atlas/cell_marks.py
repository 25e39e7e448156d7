"""By what a cell is known again: the row and the barcode that it has in its file, and its counts."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cellmill.atlas.cell_keys import shard_keys, text_hashes
from cellmill.atlas.cells import CellsFile
from cellmill.atlas.content import splitmix64
from cellmill.atlas.entry import ShardEntry
from cellmill.atlas.part import Part
from cellmill.atlas.part_rows import part_of_rows
from cellmill.atlas.unhiding import NEARLY_EMPTY
from cellmill.storage import Storage

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]

SCHEMA = pa.schema(
    [
        ("dataset", pa.string()),
        ("files", pa.string()),
        ("source_url", pa.string()),
        ("source_row", pa.int64()),
        ("name", pa.uint64()),
        ("counts", pa.uint64()),
    ]
)
"""One row a cell.

``files`` are the digests of the source's files, with blanks between, ``name`` is its barcode, mixed. ``counts``
is missing where it is the same as in another row of its place, and where counts do not matter.
"""


def identities(storage: Storage, entry: ShardEntry, rows: Mask, *, by_counts: bool) -> pa.Table:
    """Return who some rows of a shard are, as `SCHEMA` has it.

    Parameters
    ----------
    storage, entry
        The shard.
    rows : bool [n_rows]
        Which rows.
    by_counts
        Whether they shall be known by their counts as well.
    """
    part_of = part_of_rows(storage, entry)
    read = CellMarks(storage, entry, by_counts=by_counts)
    counts = read.counts() if by_counts else np.empty(0, np.uint64)
    found = []
    for number, part in enumerate(entry.sources):
        mine = rows & (part_of == number)
        n = int(mine.sum())
        if n:
            columns = [
                *(pa.repeat(value, n) for value in (part.dataset, files_of(part), part.source_url)),
                pa.array(read.rows[mine]),
                pa.array(read.names[mine]),
                pa.array(counts[mine]) if by_counts else pa.nulls(n, pa.uint64()),
            ]
            found.append(pa.table(columns, schema=SCHEMA))
    return pa.concat_tables(found) if found else SCHEMA.empty_table()


class CellMarks:
    """What the cells of a shard are known by, read once.

    Parameters
    ----------
    storage, entry
        The shard.
    by_counts
        Whether `counts` will be asked for.

    Attributes
    ----------
    rows, names
        Rows in the source, and barcodes, mixed: int64 and uint64 [n_rows].
    """

    def __init__(self, storage: Storage, entry: ShardEntry, *, by_counts: bool) -> None:
        if by_counts:
            self._keys, self._table = shard_keys(storage, entry, "n_genes", "source_row")
        else:
            self._table = CellsFile(storage, entry).read(["barcode", "source_row"])
        self.rows: I64 = self._table.column("source_row").to_numpy()
        self.names = splitmix64(text_hashes(self._table.column("barcode")))

    def counts(self) -> U64:
        """Return a number for what each cell is: its counts, and where it is nearly empty its barcode."""
        near = self._table.column("n_genes").to_numpy() < NEARLY_EMPTY
        barcode = np.where(near, self._keys[:, 2], np.uint64(0))
        return splitmix64(splitmix64(splitmix64(self._keys[:, 0]) ^ self._keys[:, 1]) ^ barcode)


def files_of(part: Part) -> str:
    """Return the digests of a source's files, with blanks between."""
    return part.files or part.source_digest
