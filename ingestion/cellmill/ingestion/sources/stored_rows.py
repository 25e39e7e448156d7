"""Compressed rows in a folder of this machine, written from entries in any order, in bounded memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from scipy import sparse

from cellmill.console import progress
from cellmill.errors import ResourceError
from cellmill.ingestion.sources.holding import hold, refuse_long

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
ENTRIES_AT_ONCE = 1 << 19
_PASSES = 3
"""Over entries that do not come in order: they are written as they come, dealt out to ranges, and sorted."""


def write_rows(
    folder: Path,
    entries: Iterable[tuple[I32, I32, npt.NDArray[Any]]],
    shape: tuple[int, int],
    n_entries: int,
    dtype: np.dtype[Any],
    where: str,
) -> None:
    """Write entries as compressed rows into a new folder.

    Parameters
    ----------
    folder
        Where `StoredRows` will find them.
    entries
        Rows, columns and values of blocks of entries.
    shape
        Of the matrix.
    n_entries
        How many entries will come, about.
    dtype
        Of the values.
    where
        The source, for messages.

    Raises
    ------
    ResourceError
        The disk has no room, or a cell has more values than fit into a task.
    """
    # Counts, where rows begin, and what is reckoned of it to sort them.
    hold(f"Bringing {shape[0]:,} cells into rows", 32 * shape[0], where)
    folder.mkdir(parents=True)
    _require_room(folder, n_entries * (2 * (8 + dtype.itemsize)), where)
    counts = np.zeros(shape[0], np.int64)
    last, in_order = 0, True
    with progress(n_entries, f"sorting {_short(where)} by cells", unit="values") as advance:
        moved = _Moved(advance)
        with (
            (folder / "cells").open("wb") as cells,
            (folder / "indices").open("wb") as indices,
            (folder / "data").open("wb") as data,
        ):
            for row, column, value in entries:
                in_order = in_order and last <= row[0] and bool(np.all(row[1:] >= row[:-1]))
                last = int(row[-1])
                counts += np.bincount(row, minlength=shape[0])
                row.tofile(cells)
                column.tofile(indices)
                value.astype(dtype, copy=False).tofile(data)
                moved(row.size, in_order)
        refuse_long(int(counts.max(initial=0)), where)
        indptr = np.concatenate([[0], np.cumsum(counts)])
        if not in_order:
            _sort(folder, indptr, dtype, moved)
    (folder / "cells").unlink()
    np.save(folder / "indptr.npy", indptr)
    (folder / "header.json").write_text(json.dumps({"n_features": shape[1], "dtype": dtype.str}))


class _Moved:
    """Tells of all passes over the entries as of one; there is but one if the entries come in order."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self._advance = advance
        self._moved = self._told = 0

    def __call__(self, n: int, in_order: bool = False) -> None:
        self._moved += n
        done = self._moved if in_order else self._moved // _PASSES
        if done > self._told:
            self._advance(done - self._told)
            self._told = done


def _short(where: str) -> str:
    path, colon, place = where.partition(": ")
    return f"{path.rpartition('/')[2]}{colon}{place}"


class StoredRows:
    """Compressed rows in a folder, as `write_rows` left them.

    Parameters
    ----------
    folder
        The folder; its files stay readable when another process deletes it.

    Raises
    ------
    ResourceError
        The folder has just been deleted.
    """

    def __init__(self, folder: Path) -> None:
        try:
            header: dict[str, Any] = json.loads((folder / "header.json").read_text())
            self._indptr: I64 = np.load(folder / "indptr.npy")
            self._indices = (folder / "indices").open("rb")
            self._data = (folder / "data").open("rb")
        except FileNotFoundError as error:
            raise ResourceError(
                "A prepared matrix was deleted to make room.", where=str(folder), fix="Set CELLMILL_CACHE_GB higher."
            ) from error
        self._dtype = np.dtype(header["dtype"])
        self.shape = (self._indptr.size - 1, int(header["n_features"]))

    @property
    def starts(self) -> I64:
        """Where each row begins: int64 [rows + 1]."""
        return self._indptr

    def rows(self, start: int, stop: int) -> sparse.csr_matrix:
        """Return rows ``[start, stop)``."""
        first, last = int(self._indptr[start]), int(self._indptr[stop])
        matrix = sparse.csr_matrix((stop - start, self.shape[1]), dtype=self._dtype)
        matrix.indptr = (self._indptr[start : stop + 1] - first).astype(np.int32)
        matrix.indices = _read_at(self._indices, np.dtype(np.int32), first, last)
        matrix.data = _read_at(self._data, self._dtype, first, last)
        return matrix

    def close(self) -> None:
        """Close the files."""
        self._indices.close()
        self._data.close()


def _require_room(folder: Path, size: int, where: str) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise ResourceError(
            f"Sorting the matrix needs up to {size / 1e9:,.1f} GB, {folder} has {free / 1e9:,.1f} GB.",
            where=where,
            fix="Make room, or set CELLMILL_CACHE to a folder on a larger disk.",
        )


def _sort(folder: Path, indptr: I64, dtype: np.dtype[Any], moved: _Moved) -> None:
    """Bring the entries on disk into the order of cells: deal them out to ranges of cells, then sort each range."""
    # A range begins with the first cell whose entries end beyond the next multiple of the size of a range.
    starts = np.flatnonzero(np.diff(indptr // ENTRIES_AT_ONCE))
    bounds = np.unique(np.concatenate([[0], starts, [indptr.size - 1]]))
    cursor = indptr[bounds[:-1]].copy()
    types = {"cells": np.dtype(np.int32), "indices": np.dtype(np.int32), "data": dtype}
    files = {name: (folder / name).open("r+b") for name in types}
    dealt = {name: (folder / f"{name}.dealt").open("w+b") for name in types}
    try:
        for _ in range(0, int(indptr[-1]), ENTRIES_AT_ONCE):
            block = {name: np.fromfile(files[name], types[name], ENTRIES_AT_ONCE) for name in types}
            which = np.searchsorted(bounds, block["cells"], side="right") - 1
            order = np.argsort(which, kind="stable")
            ends = np.cumsum(np.bincount(which, minlength=bounds.size - 1))
            for number in np.unique(which).tolist():
                mine = order[ends[number] - np.count_nonzero(which == number) : ends[number]]
                for name in types:
                    _write_at(dealt[name], block[name][mine], int(cursor[number]))
                cursor[number] += mine.size
            moved(which.size)
        for start, stop in zip(indptr[bounds[:-1]].tolist(), indptr[bounds[1:]].tolist(), strict=True):
            part = {name: _read_at(dealt[name], types[name], start, stop) for name in types}
            order = np.argsort(part["cells"], kind="stable")
            for name in ("indices", "data"):
                _write_at(files[name], part[name][order], start)
            moved(stop - start)
    finally:
        for file in (*files.values(), *dealt.values()):
            file.close()
        for name in types:
            (folder / f"{name}.dealt").unlink()


def _write_at(file: BinaryIO, values: npt.NDArray[Any], position: int) -> None:
    file.seek(position * values.itemsize)
    file.write(values.tobytes())


def _read_at(file: BinaryIO, dtype: np.dtype[Any], start: int, stop: int) -> npt.NDArray[Any]:
    file.seek(start * dtype.itemsize)
    return np.fromfile(file, dtype, stop - start)
