"""The identities of the cells that a withdrawal took, by which they are known whatever their columns say later.

A cell is known by its row in a file of these very bytes: under any name of the file or the data set, with any columns,
genes and limits of quality. Where the predicate speaks of columns of obs it is also known by its counts, in later
versions of the file at the same place: other bytes, the same data set, the same features. Neither its counts nor its
barcode is kept, but a number that they are mixed into.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from io import BytesIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cellmill.atlas.cell_keys import shard_keys
from cellmill.atlas.cells import CellsFile
from cellmill.atlas.content import splitmix64
from cellmill.atlas.entry import ShardEntry
from cellmill.atlas.part_rows import part_of_rows
from cellmill.atlas.unhiding import NEARLY_EMPTY
from cellmill.errors import IntegrityError, SourceError
from cellmill.storage import Storage

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]

SCHEMA = pa.schema(
    [
        ("dataset", pa.string()),
        ("source_sha256", pa.string()),
        ("source_url", pa.string()),
        ("source_row", pa.int64()),
        ("counts", pa.uint64()),
    ]
)
"""One row a cell. ``counts`` is missing where it is the same as in another row, and where counts do not matter."""

_SOURCE = SCHEMA.names[:3]


class Taken:
    """Cells that a withdrawal took; more can be added.

    Attributes
    ----------
    tables
        All of them, as `SCHEMA` has them.
    has_grown
        Whether cells were added that were not known.

    Parameters
    ----------
    table
        What is known, as `SCHEMA` has it.
    """

    def __init__(self, table: pa.Table | None = None) -> None:
        self.tables: list[pa.Table] = []
        self._rows: dict[str, I64] = {}
        self._counts: dict[tuple[str, str], U64] = {}
        self._sources: set[tuple[str, str]] = set()
        if table is not None:
            self.add(table)
        self.has_grown = False

    @property
    def n(self) -> int:
        """How many cells, by file and row."""
        return sum(rows.size for rows in self._rows.values())

    def had(self, dataset: str, sha256: str) -> bool:
        """Return whether cells of a data set were taken, or of a file, under whatever name."""
        return any(name == dataset or content == sha256 for name, content in self._sources)

    def add(self, table: pa.Table) -> None:
        """Add cells, as `identities` gives them; those that are known change nothing."""
        for dataset, sha256, url, some in _by_source(table):
            rows: I64 = some["source_row"].to_numpy()
            counts = some["counts"]
            there = counts.is_valid().to_numpy(zero_copy_only=False)
            values: U64 = counts.fill_null(0).to_numpy()
            known_rows = self._rows.get(sha256, np.empty(0, np.int64))
            known_counts = self._counts.get((dataset, url), np.empty(0, np.uint64))
            first = np.zeros(values.size, bool)
            first[np.flatnonzero(there)[np.unique(values[there], return_index=True)[1]]] = True
            counts_are_new = first & ~np.isin(values, known_counts)
            new = counts_are_new | ~np.isin(rows, known_rows)
            self._sources.add((dataset, sha256))
            if not new.any():
                continue
            self.has_grown = True
            self._rows[sha256] = np.union1d(known_rows, rows)
            if counts_are_new.any():
                self._counts[dataset, url] = np.union1d(known_counts, values[counts_are_new])
            column = pa.array(values, mask=~counts_are_new)
            some = some.set_column(SCHEMA.get_field_index("counts"), "counts", column)
            self.tables.append(some.filter(pa.array(new)))

    def rows_of(self, storage: Storage, entry: ShardEntry) -> Mask:
        """Return which rows of a shard are cells that were taken: bool [n_rows]."""
        found = np.zeros(entry.n_rows, bool)
        by_row = any(part.source_sha256 in self._rows for part in entry.sources)
        by_counts = any((part.dataset, part.source_url) in self._counts for part in entry.sources)
        if not (by_row or by_counts):
            return found
        part_of = part_of_rows(storage, entry)
        if by_counts:
            keys, table = shard_keys(storage, entry, "n_genes", "source_row")
        else:
            table = CellsFile(storage, entry).read(["source_row"])
        rows = table.column("source_row").to_numpy()
        for number, part in enumerate(entry.sources):
            mine = part_of == number
            if (known_rows := self._rows.get(part.source_sha256)) is not None:
                found |= mine & np.isin(rows, known_rows)
            if (known := self._counts.get((part.dataset, part.source_url))) is not None:
                found |= mine & np.isin(_mixed(keys, table, part.dataset, part.source_url), known)
        return found

    def to_bytes(self) -> bytes:
        """Return all cells as a parquet file."""
        order = [(name, "ascending") for name in (*_SOURCE, "source_row")]
        table = pa.concat_tables(self.tables or [SCHEMA.empty_table()]).sort_by(order)
        sink = BytesIO()
        pq.write_table(
            table, sink, compression="zstd", use_dictionary=_SOURCE,
            column_encoding={"source_row": "DELTA_BINARY_PACKED"},
        )  # fmt: skip
        return sink.getvalue()


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
    if by_counts:
        keys, table = shard_keys(storage, entry, "n_genes", "source_row")
    else:
        table = CellsFile(storage, entry).read(["source_row"])
    source_rows = table.column("source_row").to_numpy()
    found = []
    for number, part in enumerate(entry.sources):
        mine = rows & (part_of == number)
        n = int(mine.sum())
        if n:
            counts = _mixed(keys, table, part.dataset, part.source_url)[mine] if by_counts else None
            columns = [
                *(pa.repeat(value, n) for value in (part.dataset, part.source_sha256, part.source_url)),
                pa.array(source_rows[mine]),
                pa.nulls(n, pa.uint64()) if counts is None else pa.array(counts),
            ]
            found.append(pa.table(columns, schema=SCHEMA))
    return pa.concat_tables(found) if found else SCHEMA.empty_table()


def write_taken(storage: Storage, number: int, taken: Taken) -> str:
    """Write the cells of a withdrawal down, and return the name of the file: a digest of it, empty for no cells."""
    if not taken.n:
        return ""
    content = taken.to_bytes()
    name = _name(content)
    storage.put_if_absent(taken_key(number, name), content)
    return name


def read_taken(storage: Storage, number: int, name: str) -> Taken:
    """Return the cells of a withdrawal.

    Raises
    ------
    IntegrityError
        The file is missing or damaged.
    """
    if not name:
        return Taken()
    key = taken_key(number, name)
    try:
        content = storage.get(key)
    except SourceError as error:
        raise _damaged(storage, key, "missing") from error
    if _name(content) != name:
        raise _damaged(storage, key, "damaged")
    return Taken(pq.read_table(BytesIO(content), schema=SCHEMA, use_threads=False))


def taken_key(number: int, name: str) -> str:
    """Return where the cells of a withdrawal are, relative to the atlas."""
    return f"withdrawals/{number:04d}/{name}.parquet"


def _name(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _damaged(storage: Storage, key: str, how: str) -> IntegrityError:
    return IntegrityError(
        f"The list of the cells that a withdrawal took is {how}: they could come back.",
        where=storage.join(key),
        fix="Restore the file from a copy of the atlas.",
    )


def _mixed(keys: U64, table: pa.Table, dataset: str, url: str) -> U64:
    """Return a number for what each cell is in its place: its counts, and where it is nearly empty its barcode."""
    place = np.uint64(int(hashlib.sha256(f"{dataset}\n{url}".encode()).hexdigest()[:16], 16))
    near = table.column("n_genes").to_numpy() < NEARLY_EMPTY
    barcode = np.where(near, keys[:, 2], np.uint64(0))
    return splitmix64(splitmix64(splitmix64(keys[:, 0] ^ place) ^ keys[:, 1]) ^ barcode)


def _by_source(table: pa.Table) -> Iterator[tuple[str, str, str, pa.Table]]:
    """Yield the cells of each data set, content and place of a file."""
    table = table.combine_chunks()
    codes = np.zeros(table.num_rows, np.int64)
    for name in _SOURCE:
        encoded = pa.chunked_array(table[name]).combine_chunks().dictionary_encode()
        codes = codes * (len(encoded.dictionary) + 1) + encoded.indices.to_numpy()
    order = np.argsort(codes, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(codes[order])) + 1):
        if rows.size:
            some = table.take(pa.array(rows))
            dataset, sha256, url = (some[name][0].as_py() for name in _SOURCE)
            yield dataset, sha256, url, some
