"""Cell metadata: one parquet file a shard, one row a cell, queried without reading more than asked."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cellmill.atlas.entry import ShardEntry
from cellmill.errors import IntegrityError
from cellmill.storage import Storage

OWN_COLUMNS = (
    "cell_id",
    "dataset",
    "shard",
    "row",
    "barcode",
    "source_row",
    "n_genes",
    "n_counts",
    "content_hash",
)
"""Columns that every atlas has; all others come from the data sets' obs."""


def write_cells(storage: Storage, key: str, table: pa.Table) -> None:
    """Write the metadata of a shard's cells. It is written after the shard, and so marks it as complete."""
    buffer = BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    storage.put(key, buffer.getvalue())


def read_cells(storage: Storage, entry: ShardEntry, columns: Sequence[str] | None = None) -> pa.Table:
    """Read the metadata of a shard's cells by row; a column that this shard does not have is left out.

    Raises
    ------
    IntegrityError
        The file is not parquet, or has another number of rows than the catalogue says.
    """
    where = storage.join(entry.cells_key)
    try:
        file = pq.ParquetFile(pa.BufferReader(storage.get(entry.cells_key)))
        wanted = None if columns is None else [name for name in columns if name in file.schema_arrow.names]
        table = file.read(columns=wanted)
    except pa.ArrowInvalid as error:
        raise IntegrityError(f"The cells' metadata cannot be read: {error}", where=where) from error
    if file.metadata.num_rows != entry.n_cells:
        raise IntegrityError("The cells' metadata has another number of rows than the catalogue says.", where=where)
    return table


def cell_ids(source_sha256: str, source_rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """Return the ids of a source's cells: splitmix64 of the file's digest and the row in it.

    The id stays with a cell through re-sharding, and within a source no two rows share one (splitmix64 is a bijection:
    Steele, Lea and Flood, OOPSLA 2014).

    Parameters
    ----------
    source_sha256
        Hexadecimal digest of the source file.
    source_rows : int64 [n]

    Returns
    -------
    uint64 [n]
    """
    x = source_rows.astype(np.uint64) ^ np.uint64(int(source_sha256[:16], 16))
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
