"""Cells on their way from many shards to many others, in temporary files: first dealt out, then each heap in order.

Which heap a cell goes to, and its place there, follow from its id and a seed alone. Memory holds a few million entries
at a time, however many there are; the temporary files hold all of them, uncompressed.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cellmill.atlas.content import splitmix64
from cellmill.atlas.shard import copy_pieces
from cellmill.errors import StorageError
from cellmill.scratch import ScratchFolder

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

ENTRIES_AT_ONCE = 1 << 22
_LENGTH = "__length"
_LOCKS = 64


def lots(cell_ids: U64, seed: int) -> U64:
    """Return the number by which each cell is drawn, uint64 [n]: different cells never have the same."""
    key = splitmix64(np.array([seed], np.uint64))
    return splitmix64(cell_ids ^ key)


def heap_of(drawn: U64, n_heaps: int) -> I64:
    """Return the heap of each cell, int64 [n]: heaps are ranges of the numbers drawn."""
    return ((drawn >> np.uint64(32)) * np.uint64(n_heaps) >> np.uint64(32)).astype(np.int64)


class Heaps:
    """Heaps of cells in temporary files, as a context; files of a process that was killed are deleted by the next.

    Parameters
    ----------
    seed
        Of the order.
    n
        Number of heaps.
    wanted
        Those that are kept; cells of others are passed over.
    index_dtype, count_dtype
        Types that hold every column and every count.
    bytes
        About how many will be written.

    Raises
    ------
    StorageError
        There is not so much room for temporary files.
    """

    def __init__(
        self,
        seed: int,
        n: int,
        wanted: frozenset[int],
        *,
        index_dtype: np.dtype[Any],
        count_dtype: np.dtype[Any],
        bytes: int,
    ) -> None:
        self._seed, self._n, self._wanted = seed, n, np.array(sorted(wanted), np.int64)
        self._dtypes = {"indices": index_dtype, "data": count_dtype}
        self._folder = ScratchFolder()
        self._locks = [threading.Lock() for _ in range(_LOCKS)]
        self.n_cells = np.zeros(n, np.int64)
        """Cells of each heap."""
        self.largest = np.zeros(n, np.int64)
        """The largest count in each heap."""
        free = shutil.disk_usage(self._folder.path).free
        if free < bytes:
            self._folder.delete()
            raise StorageError(
                f"About {bytes / 1e9:,.1f} GB of temporary files are needed, and {free / 1e9:,.1f} GB are free.",
                where=str(self._folder.path),
                fix="Set TMPDIR to a folder on a larger disk, or name fewer data sets.",
            )

    def __enter__(self) -> Heaps:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.delete()

    def add(self, cells: pa.Table, indptr: I64, columns: npt.NDArray[Any], counts: npt.NDArray[Any]) -> None:
        """Deal cells out; threads may do so side by side.

        Parameters
        ----------
        cells
            Metadata, with ``cell_id``.
        indptr : int64 [n + 1]
            Where each cell's entries begin.
        columns, counts : [nnz]
            The entries.
        """
        heap = heap_of(lots(cells["cell_id"].to_numpy(), self._seed), self._n)
        order = np.argsort(heap, kind="stable")
        order = order[np.isin(heap[order], self._wanted)]
        heap = heap[order]
        lengths = np.diff(indptr)[order]
        moved = {"indices": np.empty(int(lengths.sum()), self._dtypes["indices"])}
        moved["data"] = np.empty(moved["indices"].size, self._dtypes["data"])
        for name, values in (("indices", columns), ("data", counts)):
            copy_pieces(values, indptr[order], indptr[order + 1], moved[name])
        ends = np.concatenate([[0], np.cumsum(lengths)])
        cells = cells.append_column(_LENGTH, pa.array(np.diff(indptr))).take(pa.array(order))
        starts = np.searchsorted(heap, np.arange(self._n + 1))
        for number in np.unique(heap).tolist():
            a, b = int(starts[number]), int(starts[number + 1])
            parts = {name: values[ends[a] : ends[b]] for name, values in moved.items()}
            largest = int(parts["data"].max(initial=0))
            some = cells.slice(a, b - a).combine_chunks()
            # The files of a heap have the same cells in the same order; which comes first does not matter.
            with self._locks[number % _LOCKS]:
                self.n_cells[number] += b - a
                self.largest[number] = max(self.largest[number], largest)
                for name, part in parts.items():
                    with self._path(number, name).open("ab") as file:
                        part.tofile(file)
                with self._path(number, "cells").open("ab") as file, pa.ipc.new_stream(file, some.schema) as writer:
                    writer.write_table(some)

    def take(self, number: int) -> Heap:
        """Return a heap, which has cells, in its order."""
        path = self._path(number, "cells")
        size = path.stat().st_size
        tables = []
        with pa.OSFile(str(path)) as file:
            while file.tell() < size:
                tables.append(pa.ipc.open_stream(file).read_all())
        cells = pa.concat_tables(tables)
        paths = {name: self._path(number, name) for name in self._dtypes}
        return Heap(cells, lots(cells["cell_id"].to_numpy(), self._seed), paths, self._dtypes)

    def drop(self, number: int) -> None:
        """Delete the files of a heap."""
        for name in ("cells", *self._dtypes):
            self._path(number, name).unlink(missing_ok=True)

    def _path(self, number: int, name: str) -> Path:
        return self._folder.path / f"{number:06d}.{name}"


class Heap:
    """The cells of one heap, in the order in which they were drawn.

    Attributes
    ----------
    cells
        Metadata.
    indptr : int64 [n + 1]
        Where each cell's entries begin.
    """

    def __init__(self, cells: pa.Table, drawn: U64, paths: dict[str, Path], dtypes: dict[str, np.dtype[Any]]) -> None:
        lengths = cells[_LENGTH].to_numpy().astype(np.int64)
        ends = np.cumsum(lengths)
        order = np.argsort(drawn, kind="stable")
        self._begin, self._end = (ends - lengths)[order], ends[order]
        self._paths, self._dtypes = paths, dtypes
        self.indptr: I64 = np.concatenate([[0], np.cumsum(lengths[order])])
        self.cells = cells.drop_columns([_LENGTH]).take(pa.array(order)).combine_chunks()

    def entries(self) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
        """Yield columns and counts of all entries, some cells at a time."""
        if not self.indptr[-1]:
            return
        files = {name: np.memmap(path, self._dtypes[name], "r") for name, path in self._paths.items()}
        for a, b in row_ranges(self.indptr):
            found = {}
            for name, values in files.items():
                found[name] = np.empty(int(self.indptr[b] - self.indptr[a]), values.dtype)
                copy_pieces(np.asarray(values), self._begin[a:b], self._end[a:b], found[name])
            yield found["indices"], found["data"]


def row_ranges(indptr: I64) -> Iterator[tuple[int, int]]:
    """Yield ranges of rows of at most `ENTRIES_AT_ONCE` entries each, or of one row."""
    start, n = 0, indptr.size - 1
    while start < n:
        stop = int(np.searchsorted(indptr, indptr[start] + ENTRIES_AT_ONCE, side="right")) - 1
        stop = min(max(stop, start + 1), n)
        yield start, stop
        start = stop
