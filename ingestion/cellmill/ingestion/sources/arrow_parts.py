"""Parquet and Arrow files as ranges of rows: one file, or all of a folder one after the other."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain, pairwise
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cellmill.errors import SourceError
from cellmill.ingestion.sources.ipc_memory import refuse_large_batches
from cellmill.ingestion.sources.parquet_lengths import list_lengths
from cellmill.ingestion.sources.parquet_memory import buffer_bytes, reading_bytes
from cellmill.ingestion.sources.place import Place
from cellmill.ingestion.sources.remote import is_web
from cellmill.ingestion.sources.translating import first_line

_PARQUET, _ARROW, _STREAM = b"PAR1", b"ARROW1", b"\xff\xff\xff\xff"
_ROWS_AT_ONCE = 1 << 12
VALUES_AT_ONCE = 1 << 17
"""Of all columns: lists of text take a hundred bytes a value while they are read."""
_VALUE_BYTES = 8
"""Of a number, at most."""
_MANY_COLUMNS = 256
_SUSPICIOUS_BYTES = 1 << 28
_SUSPICIOUS_RATIO = 500
_SMALL = 1 << 12
_FIX = "Fetch or write the file again."


class Part(Protocol):
    """One file."""

    url: str
    schema: pa.Schema
    n_rows: int

    def batches(self, columns: Sequence[str], start: int, stop: int, rows: int) -> Iterator[pa.RecordBatch]:
        """Yield rows ``[start, stop)`` of columns, at most `rows` at a time."""
        ...

    def lengths(self, columns: Sequence[str]) -> Iterator[list[npt.NDArray[np.int64]]]:
        """Yield the lengths of the lists of each column, some rows at a time; no value is decoded for it."""
        ...

    def reading_bytes(self, columns: Sequence[str]) -> int:
        """Return what is in memory while columns of numbers are read, however few rows."""
        ...

    def close(self) -> None:
        """Close the file."""
        ...


def is_arrow(place: Place) -> bool:
    """Return whether a file begins like Parquet or Arrow, as a file or a stream."""
    return not place.is_dir and place.head(8).startswith((_PARQUET, _ARROW, _STREAM))


def open_part(place: Place) -> Part:
    """Open a file.

    Raises
    ------
    SourceError
        It is damaged, cut short, or claims more rows or bytes than its size can hold.
    """
    head = place.head(8)
    if not head.startswith((_PARQUET, _ARROW, _STREAM)):
        raise SourceError("The file is neither Parquet nor Arrow.", where=place.url, fix=_FIX)
    size = place.size or 0
    with reading(place.url):
        part: Part
        if head.startswith(_PARQUET):
            part = ParquetPart(place)
        else:
            part = IpcPart(place, stream=head.startswith(_STREAM))
    if part.n_rows > max(size, _SMALL) * _SUSPICIOUS_RATIO:
        part.close()
        raise SourceError(f"The file claims {part.n_rows:,} rows in {size:,} bytes.", where=place.url, fix=_FIX)
    return part


class ParquetPart:
    """A Parquet file, read by row groups."""

    def __init__(self, place: Place) -> None:
        self.url = place.url
        self._place = place
        self._file = self._open()
        self.schema: pa.Schema = self._file.schema_arrow
        meta = self._file.metadata
        groups = [meta.row_group(i) for i in range(meta.num_row_groups)]
        self._bounds = np.concatenate([[0], np.cumsum([group.num_rows for group in groups])]).astype(np.int64)
        self._cursors: dict[tuple[str, ...], _Cursor] = {}
        self.n_rows = int(self._bounds[-1])
        claimed, size = sum(group.total_byte_size for group in groups), place.size or 0
        if claimed > _SUSPICIOUS_BYTES and claimed > size * _SUSPICIOUS_RATIO:
            raise SourceError(
                f"The file claims {claimed / 1e9:,.1f} GB in {size / 1e6:,.1f} MB.", where=self.url, fix=_FIX
            )

    def batches(self, columns: Sequence[str], start: int, stop: int, rows: int) -> Iterator[pa.RecordBatch]:
        """See `Part`."""
        if start >= stop:
            return
        # Who reads on where the last read ended goes on decoding there: a group of rows can be the whole file.
        cursor = self._cursors.pop(tuple(columns), None)
        if cursor is not None and cursor.position > start:
            cursor.close()
            cursor = None
        cursor = cursor or self._cursor(columns, start, rows)
        yield from cursor.read(start, stop)
        if cursor.position < self.n_rows:
            self._cursors[tuple(columns)] = cursor
        else:
            # Of a folder of many files, only one is being read.
            cursor.close()

    def _cursor(self, columns: Sequence[str], start: int, rows: int) -> _Cursor:
        first = max(0, int(np.searchsorted(self._bounds, start, side="right")) - 1)
        groups = list(range(first, len(self._bounds) - 1))
        # A file of its own: the number of rows at once is the file's, and the next to ask would change it for all.
        file = self._open(self._file.metadata, len(columns))
        kinds = [self.schema.field(name).type for name in columns]
        encoded = any(pa.types.is_nested(kind) and pa.types.is_dictionary(kind.value_type) for kind in kinds)
        # Each group has its own dictionary, and pyarrow does not bring those of lists together.
        runs = [[group] for group in groups] if encoded else [groups]
        batches = chain.from_iterable(file.iter_batches(rows, run, list(columns), use_threads=False) for run in runs)
        return _Cursor(file, batches, int(self._bounds[first]))

    def _open(self, metadata: pq.FileMetaData | None = None, n_columns: int = 1) -> pq.ParquetFile:
        # Of a table with very many columns, short pieces all over the file are read, in the end all of it.
        file = pa.OSFile(str(self._place.local_path())) if n_columns > _MANY_COLUMNS else _readable(self._place)
        return pq.ParquetFile(file, metadata=metadata, buffer_size=buffer_bytes(n_columns), pre_buffer=False)

    def lengths(self, columns: Sequence[str]) -> Iterator[list[npt.NDArray[np.int64]]]:
        """See `Part`."""
        with _readable(self._place) as file:
            of_each = [list_lengths(self._file.metadata, column, file, self.url) for column in columns]
            yield from (list(one) for one in zip(*of_each, strict=True))

    def reading_bytes(self, columns: Sequence[str]) -> int:
        """See `Part`."""
        with _readable(self._place) as file:
            return reading_bytes(self._file.metadata, columns, file) + VALUES_AT_ONCE * _VALUE_BYTES

    def close(self) -> None:
        """Close the file."""
        for cursor in self._cursors.values():
            cursor.close()
        self._cursors.clear()
        self._file.close(force=True)


class _Cursor:
    """Rows of a file that come one after the other.

    Parameters
    ----------
    file
        Closed with it.
    batches
        The rows.
    position
        Number of the first.
    """

    def __init__(self, file: pq.ParquetFile, batches: Iterator[pa.RecordBatch], position: int) -> None:
        self._file, self._batches, self.position = file, batches, position
        self._rest: pa.RecordBatch | None = None

    def read(self, start: int, stop: int) -> Iterator[pa.RecordBatch]:
        """Yield rows ``[start, stop)``, none of which was read before."""
        while self.position < stop:
            batch = self._rest if self._rest is not None else next(self._batches, None)
            if batch is None:
                return
            yield from _cut(batch, self.position, start, stop)
            taken = min(batch.num_rows, stop - self.position)
            self.position += taken
            self._rest = batch.slice(taken) if taken < batch.num_rows else None

    def close(self) -> None:
        """Close the file."""
        self._file.close(force=True)


class IpcPart:
    """An Arrow file or stream, on disk as it is in memory."""

    def __init__(self, place: Place, *, stream: bool) -> None:
        self.url = place.url
        self._stream = stream
        self._source = pa.memory_map(str(place.local_path()))
        refuse_large_batches(self._source, stream=stream, where=self.url)
        with self._reader([]) as reader:
            self.schema: pa.Schema = reader.schema
        narrow = next((field.name for field in self.schema if pa.types.is_primitive(field.type)), None)
        names = [narrow or self.schema.names[0]] if self.schema.names else []
        with self._reader(names) as reader:
            rows = [batch.num_rows for batch in self._all(reader)]
        self._bounds = [0, *np.cumsum(rows).tolist()]
        self.n_rows = int(self._bounds[-1])

    def batches(self, columns: Sequence[str], start: int, stop: int, rows: int) -> Iterator[pa.RecordBatch]:
        """See `Part`."""
        with self._reader(columns) as reader:
            found = iter(reader) if self._stream else None
            for number, (low, high) in enumerate(pairwise(self._bounds)):
                if found is None and (high <= start or low >= stop):
                    continue
                batch = next(found) if found is not None else reader.get_batch(number)
                batch = batch.select(list(columns))
                # Bytes on disk are taken as they are: offsets beyond the data would end this process.
                batch.validate(full=True)
                for whole in _cut(batch, low, start, stop):
                    for offset in range(0, whole.num_rows, rows):
                        yield whole.slice(offset, rows)
                if high >= stop:
                    return

    def lengths(self, columns: Sequence[str]) -> Iterator[list[npt.NDArray[np.int64]]]:
        """See `Part`."""
        with self._reader(columns) as reader:
            for batch in self._all(reader):
                found = [pc.fill_null(pc.list_value_length(batch.column(name)), 0) for name in columns]
                yield [lengths.to_numpy().astype(np.int64) for lengths in found]

    def reading_bytes(self, columns: Sequence[str]) -> int:
        """See `Part`; batches are decoded as a whole where they are compressed, and lie in the file otherwise."""
        width = sum(int(self.schema.field(name).type.bit_width) // 8 for name in columns)
        if self._source.size() >= self.n_rows * width:
            return 0
        return max((high - low for low, high in pairwise(self._bounds)), default=0) * width

    def close(self) -> None:
        """Close the file."""
        self._source.close()

    @contextmanager
    def _reader(self, columns: Sequence[str]) -> Iterator[Any]:
        self._source.seek(0)
        options = pa.ipc.IpcReadOptions()
        if columns:
            options = pa.ipc.IpcReadOptions(included_fields=[self.schema.get_field_index(name) for name in columns])
        open_it = pa.ipc.open_stream if self._stream else pa.ipc.open_file
        with open_it(self._source, options=options) as reader:
            yield reader

    def _all(self, reader: Any) -> Iterator[pa.RecordBatch]:
        batches = iter(reader) if self._stream else (reader.get_batch(i) for i in range(reader.num_record_batches))
        for batch in batches:
            batch.validate(full=True)
            yield batch


class Parts:
    """Files with one schema, as one sequence of rows.

    Parameters
    ----------
    places
        The files, in order.

    Attributes
    ----------
    beside
        Closes what was opened beside the files.

    Raises
    ------
    SourceError
        A file is damaged, or has other columns than the first.
    """

    def __init__(self, places: Sequence[Place]) -> None:
        self.parts: list[Part] = []
        self.beside = ExitStack()
        try:
            for place in places:
                self.parts.append(open_part(place))
                self._compare(self.parts[-1])
        except BaseException:
            self.close()
            raise
        self.schema = self.parts[0].schema
        self._bounds = [0, *np.cumsum([part.n_rows for part in self.parts]).tolist()]
        self.n_rows = int(self._bounds[-1])

    def read(self, columns: Sequence[str], start: int, stop: int) -> pa.Table:
        """Return rows ``[start, stop)`` of columns.

        Raises
        ------
        SourceError
            They cannot be read.
        """
        batches = list(self.batches(columns, start, stop))
        if not batches:
            return pa.schema([self.schema.field(name) for name in columns]).empty_table()
        with reading(self.parts[0].url):
            return pa.concat_tables([pa.Table.from_batches([batch]) for batch in batches], promote_options="permissive")

    def batches(
        self, columns: Sequence[str], start: int, stop: int, rows: int | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Yield rows ``[start, stop)`` of columns, some at a time, or at most `rows`. Raises as `read`."""
        rows = rows or max(1, min(_ROWS_AT_ONCE, VALUES_AT_ONCE // max(len(columns), 1)))
        for part, low, high in zip(self.parts, self._bounds[:-1], self._bounds[1:], strict=True):
            if low < stop and start < high:
                with reading(f"{part.url}: rows {max(start, low) - low} to {min(stop, high) - low - 1}"):
                    yield from part.batches(columns, max(start, low) - low, min(stop, high) - low, rows)

    def reading_bytes(self, columns: Sequence[str]) -> int:
        """Return what is in memory while columns of numbers are read, however few rows.

        Raises
        ------
        SourceError
            A file cannot be read.
        """
        with reading(self.parts[0].url):
            return max(part.reading_bytes(columns) for part in self.parts)

    def lengths(self, columns: Sequence[str]) -> Iterator[npt.NDArray[np.int64]]:
        """Yield the lengths of the lists of columns, which are the same, some rows at a time.

        Raises
        ------
        SourceError
            A file cannot be read, or the lengths differ.
        """
        for part in self.parts:
            with reading(part.url):
                for first, *others in part.lengths(columns):
                    if not all(np.array_equal(first, other) for other in others):
                        raise SourceError(f"Lists of {' and '.join(columns)} have different lengths.", where=part.url)
                    yield first

    def close(self) -> None:
        """Close all files, and what was made of them."""
        self.beside.close()
        for part in self.parts:
            part.close()

    def _compare(self, part: Part) -> None:
        first = self.parts[0]
        if part.schema.names != first.schema.names:
            other = sorted(set(part.schema.names) ^ set(first.schema.names)) or ["their order"]
            raise SourceError(
                f"The files have different columns ({', '.join(other[:5])}).",
                where=f"{first.url} and {part.url}",
                fix="Put only files of one table into the folder, or name them by a pattern.",
            )


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Turn Arrow's errors into ours."""
    try:
        yield
    except MemoryError:
        # Arrow's is an exception of Arrow's, too, and says nothing about the file.
        raise
    except (pa.ArrowException, OSError, KeyError, EOFError, UnicodeDecodeError) as error:
        raise SourceError(f"The file is damaged or cut short: {first_line(error)}", where=where, fix=_FIX) from error


def _readable(place: Place) -> Any:
    """Return something that pyarrow reads: of a file in an object store, only what is asked for is fetched."""
    if place.is_local or is_web(place.location):
        # Not mapped: pages that were read would count as memory of this process until somebody else needs them.
        return pa.OSFile(str(place.local_path()))
    return pa.PythonFile(io.BufferedReader(_RemoteFile(place), 1 << 20), mode="r")


class _RemoteFile(io.RawIOBase):
    """An object of a store as Python's files are."""

    def __init__(self, place: Place) -> None:
        self._place, self._position = place, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._place.size or 0}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        stop = min(self._position + len(buffer), self._place.size or 0)
        data = self._place.part(self._position, stop)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def _cut(batch: pa.RecordBatch, position: int, start: int, stop: int) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a batch that begins at `position` that are in ``[start, stop)``."""
    low, high = max(start - position, 0), min(stop - position, batch.num_rows)
    if low < high:
        yield batch.slice(low, high - low)
