"""Arrays of text in HDF5 files."""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np

from cellmill.errors import SourceError
from cellmill.ingestion.sources.bombs import refuse_bombs
from cellmill.ingestion.sources.holding import hold, text_bytes

_LOOK = 32


def read_texts(group: h5py.Group, key: str, where: str) -> list[str]:
    """Read an array of text of one dimension, or of two with one column; numbers are written out.

    Raises
    ------
    SourceError
        It is no such array, cannot be read, or is not UTF-8.
    """
    values = read_array(group, key, where)
    if values.ndim != 1:
        raise SourceError(f"{group.name}/{key} has {values.ndim} dimensions, not 1.", where=where)
    return to_texts(values, f"{where}: {group.name}/{key}")


def read_array(group: h5py.Group, key: str, where: str, start: int = 0, stop: int | None = None) -> Any:
    """Read ``[start, stop)`` of an array; of one of the shape (n, 1) as so many values.

    Raises
    ------
    SourceError
        It is no array, claims more than the file holds, or cannot be read.
    """
    item = group.get(key)
    if not isinstance(item, h5py.Dataset) or not item.shape:
        raise SourceError(f"{group.name}/{key} is no array.", where=where)
    refuse_bombs(item, where)
    try:
        if stop is None:
            n = int(item.shape[0])
            # As the file has it, and as text.
            hold(f"The {n:,} values of {group.name}/{key}", 2 * text_bytes(n, np.ravel(item[:_LOOK])), where)
        values: Any = item[start:stop]
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise SourceError(f"{group.name}/{key} cannot be read: {error}.", where=where) from error
    values = np.asarray(values)
    return values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values


def to_texts(values: Any, where: str) -> list[str]:
    """Return values as text.

    Raises
    ------
    SourceError
        They are bytes that are not UTF-8.
    """
    try:
        return [value.decode() if isinstance(value, bytes) else str(value) for value in values.tolist()]
    except UnicodeDecodeError as error:
        raise SourceError(f"The text is not UTF-8: {error}.", where=where) from error
