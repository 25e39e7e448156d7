"""Where lists of a column begin, counted once a machine and kept on its disk: there are as many as cells."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cellmill.errors import ResourceError
from cellmill.ingestion.sources.holding import refuse_long

I64 = npt.NDArray[np.int64]

_MOST_ROWS = 1 << 12


def write_starts(folder: Path, lengths: Iterator[I64], at_once: int, where: str) -> None:
    """Write where lists begin into a new folder.

    Parameters
    ----------
    folder
        Where `ListStarts` will find it.
    lengths
        Of all lists, some at a time.
    at_once
        Values that are wanted at once.
    where
        The source, for messages.

    Raises
    ------
    ResourceError
        A list is too long for a task.
    """
    folder.mkdir(parents=True)
    total, before, cell, most, rows = 0, 0, 0, 0, _MOST_ROWS
    with (folder / "starts").open("wb") as file:
        np.zeros(1, np.int64).tofile(file)
        for some in lengths:
            at = int(some.argmax()) if some.size else 0
            if some.size and int(some[at]) > most:
                cell, most = before + at, int(some[at])
                refuse_long(most, f"{where}, cell {cell}")
            ends = np.cumsum(some) + total
            ends.tofile(file)
            starts = np.concatenate([[total], ends])
            while rows > 1 and _heaviest(starts, rows) > max(at_once, most):
                rows //= 2
            total, before = int(starts[-1]), before + some.size
    header = {"longest": [cell, most], "rows_at_once": rows, "size": before + 1}
    (folder / "header.json").write_text(json.dumps(header))


def _heaviest(starts: I64, rows: int) -> int:
    """Return the values of so many neighbours, at most."""
    if starts.size <= rows:
        return int(starts[-1] - starts[0])
    return int((starts[rows:] - starts[:-rows]).max())


class ListStarts:
    """Where lists begin, as `write_starts` left it: an array of int64 [n_cells + 1] of which none is in memory.

    Attributes
    ----------
    size
        Number of cells, and one.
    longest
        Number of the cell with most values, and how many.
    rows_at_once
        So many neighbours have no more values than were wanted at once, or than the longest.

    Raises
    ------
    ResourceError
        The folder has just been deleted.
    """

    def __init__(self, folder: Path) -> None:
        try:
            header: dict[str, Any] = json.loads((folder / "header.json").read_text())
            self._file = (folder / "starts").open("rb")
        except FileNotFoundError as error:
            raise ResourceError(
                "Where lists begin was deleted to make room.", where=str(folder), fix="Set CELLMILL_CACHE_GB higher."
            ) from error
        self.size, self.rows_at_once = int(header["size"]), int(header["rows_at_once"])
        self.longest: tuple[int, int] = tuple(header["longest"])

    def __getitem__(self, key: Any, /) -> Any:
        rows: Any = range(self.size)[key]
        first, last = (rows, rows + 1) if isinstance(rows, int) else (rows.start, rows.stop)
        self._file.seek(first * 8)
        found: I64 = np.fromfile(self._file, np.int64, max(0, last - first))
        return int(found[0]) if isinstance(rows, int) else found[:: rows.step]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.asarray(self[:], dtype)

    def close(self) -> None:
        """Close the file; it stays readable until then, even when another process deletes it."""
        self._file.close()
