"""The cells' metadata: one parquet file a shard, one row a cell, in the order of the shard's rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cellmill.atlas.entry import ShardEntry
from cellmill.atlas.remote_file import RemoteFile
from cellmill.errors import IntegrityError, SourceError
from cellmill.storage import Storage

T = TypeVar("T")
Rows = npt.NDArray[np.int64]

FIXED = pa.schema(
    [
        ("cell_id", pa.uint64()),
        ("dataset", pa.string()),
        ("shard", pa.string()),
        ("row", pa.int32()),
        ("barcode", pa.string()),
        ("source_row", pa.int64()),
        ("n_genes", pa.int32()),
        ("n_counts", pa.int64()),
        ("n_features", pa.int32()),
        ("mito_share", pa.float32()),
        ("content_hash", pa.binary(16)),
    ]
)
"""Columns that every cell has; those of the source's `obs` follow.

``n_genes`` and ``n_counts`` are what quality is judged by: expressed genes and their counts, and in data sets that
measured no gene, those of all features. ``n_features`` is the length of the shard's row: features of all modalities.
"""
VIRTUAL = ("is_duplicate",)
"""Columns that a snapshot adds: whether the same cell, by its content, came earlier and both are kept."""

CATALOG = ("licence", "organism", "source_digest", "source_url")
"""Columns that the catalog knows: each cell has its source's value, null where that is empty.

Only a compacted shard, whose cells have several, stores them.
"""

_RANDOM = ("cell_id", "content_hash")
"""Columns whose bytes are random, so that compressing them gains nothing."""
_UNIQUE = (*_RANDOM, "row", "barcode", "source_row", "mito_share")
"""Columns of which hardly a value comes twice: a dictionary would be as large as they are."""
_ROW_GROUP = 1 << 13
"""Some rows of a large shard are read without the others, and the footer still takes a tenth of a millisecond."""


def write_cells(storage: Storage, path: str, table: pa.Table) -> None:
    """Write the metadata of a shard's cells. This is the last file of a shard: it is complete when this is there."""
    sink = BytesIO()
    pq.write_table(
        table,
        sink,
        compression={name: "none" if name in _RANDOM else "zstd" for name in table.schema.names},
        use_dictionary=[name for name in table.schema.names if name not in _UNIQUE],
        row_group_size=_ROW_GROUP,
        write_page_checksum=True,
    )
    storage.put(path, sink.getvalue())


class CellsFile:
    """The metadata of one shard, opened for projection and filtering.

    Parameters
    ----------
    storage
        The atlas's storage.
    entry
        The shard.

    Raises
    ------
    IntegrityError
        The file is missing or is no parquet file of as many rows as the shard has.
    """

    def __init__(self, storage: Storage, entry: ShardEntry) -> None:
        self._storage, self._entry = storage, entry
        self._where = storage.join(entry.cells_path)
        self._file = self._twice(self._open)
        self.schema: pa.Schema = self._file.schema_arrow

    def read(self, columns: Sequence[str], rows: Rows | None = None) -> pa.Table:
        """Return columns, those of the catalog too; one that this shard lacks is null throughout.

        Parameters
        ----------
        columns
            Which.
        rows : int64 [n], optional
            Of which rows; all by default. Row groups that have none of them are not read.
        """
        told = () if self._entry.parts else CATALOG
        n_rows = self._entry.n_rows if rows is None else rows.size
        present = [name for name in columns if name in self.schema.names and name not in told]

        def read() -> pa.Table:
            if rows is None:
                return self._file.read(columns=present, use_threads=False)
            return self._some(present, rows)

        def read_anew() -> pa.Table:
            self._file = self._open()
            return read()

        table = self._twice(read, read_anew)
        for name in columns:
            if name not in present:
                value = (getattr(self._entry, name) or None) if name in CATALOG else None
                kind = pa.string() if name in CATALOG else pa.null()
                table = table.append_column(name, pa.repeat(pa.scalar(value, kind), n_rows))
        return table.select(list(columns))

    def _some(self, columns: list[str], rows: Rows) -> pa.Table:
        meta = self._file.metadata
        sizes = np.array([meta.row_group(i).num_rows for i in range(meta.num_row_groups)], np.int64)
        ends = np.cumsum(sizes)
        group = np.searchsorted(ends, rows, side="right")
        needed = np.unique(group)
        table = self._file.read_row_groups(needed.tolist(), columns=columns, use_threads=False)
        begin = np.cumsum(sizes[needed]) - sizes[needed]
        place = begin[np.searchsorted(needed, group)] + rows - (ends - sizes)[group]
        return table.take(pa.array(place))

    def _open(self) -> pq.ParquetFile:
        storage, path = self._storage, self._entry.cells_path
        if storage.is_local:
            source: Any = pa.memory_map(str(storage.local_path(path)))
        else:
            # Only the footer and the columns that are asked for are fetched.
            source = RemoteFile(storage, path)
        file = pq.ParquetFile(source, page_checksum_verification=True, pre_buffer=not storage.is_local)
        if file.metadata.num_rows != self._entry.n_rows:
            raise IntegrityError(
                f"The cells' metadata has {file.metadata.num_rows:,} rows, the shard {self._entry.n_rows:,}.",
                where=self._where,
            )
        return file

    def _twice(self, read: Callable[[], T], again: Callable[[], T] | None = None) -> T:
        """Return what is read; of a remote file, what does not come whole is asked for once more."""
        try:
            return self._translated(read)
        except IntegrityError:
            if self._storage.is_local:
                raise
        return self._translated(again or read)

    def _translated(self, read: Callable[[], T]) -> T:
        try:
            return read()
        except (pa.ArrowException, SourceError, OSError) as error:
            what = error.what if isinstance(error, SourceError) else f"{error}."
            raise IntegrityError(f"The cells' metadata cannot be read: {what}", where=self._where) from error


def unify(tables: Sequence[pa.Table]) -> pa.Table:
    """Return tables of shards one below the other; a column of several types becomes text.

    Integers beside floats become floats; a missing column is null.
    """
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        pass
    types: dict[str, set[pa.DataType]] = {}
    for table in tables:
        for item in table.schema:
            if not pa.types.is_null(item.type):
                types.setdefault(item.name, set()).add(item.type)
    mixed = {name for name, found in types.items() if len(found) > 1 and not all(map(_is_number, found))}
    return pa.concat_tables([_as_text(table, mixed) for table in tables], promote_options="permissive")


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _as_text(table: pa.Table, names: set[str]) -> pa.Table:
    for index, item in enumerate(table.schema):
        if item.name in names:
            table = table.set_column(index, item.name, pc.cast(table.column(index), pa.string()))
    return table
