"""The identities of the cells that a withdrawal took, by which they are known whatever their columns say later.

A cell is known by its row and its barcode in a file of these very bytes: under any name of the file or the data set,
with any columns, genes and limits of quality, alone or joined with other files. Which row a cell has may depend on what
is read of a file, for instance on what it is joined with: where rows do not bear the barcodes that they had, barcodes
alone tell. Where the predicate speaks of columns of obs, a cell is also known by its counts of the same features, a
nearly empty one by its barcode as well: in later versions of the file at the same place, and in any other file where
it has no value in one of these columns, so that the predicate cannot tell. Neither counts nor barcodes are kept, but
numbers that they are mixed into.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from io import BytesIO
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cellmill.atlas.cell_marks import SCHEMA, CellMarks, files_of
from cellmill.atlas.cells import CellsFile
from cellmill.atlas.entry import ShardEntry
from cellmill.atlas.part_rows import part_of_rows
from cellmill.atlas.summary import facts
from cellmill.errors import IntegrityError, SourceError
from cellmill.storage import Storage

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]

_SOURCE = SCHEMA.names[:3]
_NONE = np.empty(0, np.uint64)


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
        self._cells: dict[str, _Cells] = {}
        self._counts: dict[tuple[str, str], U64] = {}
        self._everywhere = _NONE
        self._sources: set[tuple[str, str]] = set()
        if table is not None:
            self.add(table)
        self.has_grown = False

    @property
    def n(self) -> int:
        """How many cells, by file and row, are listed."""
        return sum(table.num_rows for table in self.tables)

    def had(self, dataset: str, files: str) -> bool:
        """Return whether cells of a data set were taken, or of one of some files, under whatever name."""
        return any(name == dataset or file in files.split() for name, file in self._sources)

    def n_by_file(self) -> dict[str, int]:
        """Return how many cells of each file are known, at least, by its digest."""
        return {file: cells.n_names() for file, cells in self._cells.items()}

    def add(self, table: pa.Table) -> bool:
        """Add cells, as `identities` gives them, and return whether any was not known."""
        before = len(self.tables)
        for dataset, files, url, some in _by_source(table):
            cells = _Cells(some["source_row"].to_numpy(), some["name"].to_numpy())
            counts = some["counts"]
            there = counts.is_valid().to_numpy(zero_copy_only=False)
            values: U64 = counts.fill_null(0).to_numpy()
            known_counts = self._counts.get((dataset, url), _NONE)
            first = np.zeros(values.size, bool)
            first[np.flatnonzero(there)[np.unique(values[there], return_index=True)[1]]] = True
            counts_are_new = first & ~_are_in(values, known_counts)
            new = counts_are_new.copy()
            for file in files.split():
                self._sources.add((dataset, file))
                known = self._cells.get(file)
                new |= True if known is None else ~known.are_at(cells)
            if not new.any():
                continue
            self.has_grown = True
            for file in files.split():
                known = self._cells.get(file)
                self._cells[file] = cells.sorted() if known is None else known.plus(cells)
            if counts_are_new.any():
                self._counts[dataset, url] = np.sort(np.concatenate([known_counts, values[counts_are_new]]))
                self._everywhere = np.union1d(self._everywhere, values[counts_are_new])
            column = pa.array(values, mask=~counts_are_new)
            some = some.set_column(SCHEMA.get_field_index("counts"), "counts", column)
            self.tables.append(some.filter(pa.array(new)))
        return len(self.tables) > before

    def rows_of(self, storage: Storage, entry: ShardEntry, columns: Sequence[str] = ()) -> Mask:
        """Return which rows of a shard are cells that were taken: bool [n_rows].

        Parameters
        ----------
        storage, entry
            The shard.
        columns
            Columns of obs without which the counts tell, of whatever data set and place the cells are.
        """
        found = np.zeros(entry.n_rows, bool)
        by_file = [
            [self._cells[file] for file in files_of(part).split() if file in self._cells] for part in entry.sources
        ]
        by_counts = [self._counts.get((part.dataset, part.source_url)) for part in entry.sources]
        lacks = _lacks(storage, entry, columns) if self._everywhere.size and columns else None
        if not any(by_file) and all(known is None for known in by_counts) and lacks is None:
            return found
        reads_counts = lacks is not None or any(known is not None for known in by_counts)
        part_of = part_of_rows(storage, entry)
        read = CellMarks(storage, entry, by_counts=reads_counts)
        counts = read.counts() if reads_counts else _NONE
        for number in range(len(entry.sources)):
            mine = np.flatnonzero(part_of == number)
            for known in by_file[number]:
                found[mine[known.are_among(_Cells(read.rows[mine], read.names[mine]))]] = True
            if (numbers := by_counts[number]) is not None:
                found[mine[_are_in(counts[mine], numbers)]] = True
        if lacks is not None:
            found |= lacks & _are_in(counts, self._everywhere)
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


def write_taken(storage: Storage, number: int, taken: Taken) -> str:
    """Write the cells of a withdrawal down, and return the name of the file: a digest of it, empty for no cells."""
    if not taken.tables:
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
    return Taken(pq.ParquetFile(BytesIO(content)).read(use_threads=False))


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


class _Cells(NamedTuple):
    """Cells of one file: their rows and names, int64 and uint64 [n]."""

    rows: I64
    names: U64

    def n_names(self) -> int:
        """Return how many names there are."""
        return int(np.count_nonzero(np.diff(np.sort(self.names)))) + bool(self.names.size)

    def sorted(self) -> _Cells:
        """Return them by row, each once."""
        # Rows are mostly in order, and each has one name: sorting what is sorted costs little.
        order = np.argsort(self.rows, kind="stable")
        rows, names = self.rows[order], self.names[order]
        if (rows[1:] == rows[:-1]).any():
            order = order[np.lexsort((names, rows))]
        rows, names = self.rows[order], self.names[order]
        new = np.ones(rows.size, bool)
        new[1:] = (rows[1:] != rows[:-1]) | (names[1:] != names[:-1])
        return _Cells(rows[new], names[new])

    def plus(self, others: _Cells) -> _Cells:
        """Return these and others, by row."""
        return _Cells(np.concatenate([self.rows, others.rows]), np.concatenate([self.names, others.names])).sorted()

    def are_at(self, cells: _Cells) -> Mask:
        """Return which cells are in these, which are sorted, by row and name."""
        # Where what is read of the file changed, one row may have had several names: few, and mostly one.
        found = np.zeros(cells.rows.size, bool)
        first = np.searchsorted(self.rows, cells.rows, "left")
        last = np.searchsorted(self.rows, cells.rows, "right")
        for step in range(int((last - first).max(initial=0))):
            at = np.minimum(first + step, self.rows.size - 1)
            found |= (first + step < last) & (self.names[at] == cells.names)
        return found

    def are_among(self, cells: _Cells) -> Mask:
        """Return which cells of a shard are these: by row and name, or by name where rows have other names now."""
        at = self.are_at(cells)
        are_rows_the_same = at.any() and not (_are_in(cells.rows, self.rows) & ~at).any()
        return at if are_rows_the_same else _are_in(cells.names, np.sort(self.names))


def _are_in(values: I64 | U64, known: I64 | U64) -> Mask:
    """Return which values are among others, which are sorted and may be many more."""
    if not known.size:
        return np.zeros(values.size, bool)
    at = np.minimum(np.searchsorted(known, values), known.size - 1)
    return np.asarray(known[at] == values)


def _lacks(storage: Storage, entry: ShardEntry, columns: Sequence[str]) -> Mask | None:
    """Return which rows of a shard have no value in one of some columns, or None if all have one: bool [n_rows]."""
    known = facts(entry, columns)
    if all(name in known and not known[name].n_missing for name in columns):
        return None
    table = CellsFile(storage, entry).read(columns)
    if not any(column.null_count for column in table.columns):
        return None
    found = np.zeros(entry.n_rows, bool)
    for column in table.columns:
        found |= column.is_null().to_numpy()
    return found


def _by_source(table: pa.Table) -> Iterator[tuple[str, str, str, pa.Table]]:
    """Yield the cells of each data set, content and place of files."""
    table = table.combine_chunks()
    codes = np.zeros(table.num_rows, np.int64)
    for name in _SOURCE:
        encoded = pa.chunked_array(table[name]).combine_chunks().dictionary_encode()
        codes = codes * (len(encoded.dictionary) + 1) + encoded.indices.to_numpy()
    order = np.argsort(codes, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(codes[order])) + 1):
        if rows.size:
            some = table if rows.size == table.num_rows else table.take(pa.array(rows))
            dataset, files, url = (some[name][0].as_py() for name in _SOURCE)
            yield dataset, files, url, some
