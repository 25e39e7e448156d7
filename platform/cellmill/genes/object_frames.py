"""Read the text columns of a pickled table, alone or in HDF5, without unpickling anything.

PyTables stores object columns as a pickled array, and some packages pickle the whole table. Here the opcodes are only
decoded, never executed: strings, None and collections of strings are kept, whatever would import or call something
becomes an inert placeholder.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable
from typing import Any

import h5py
import numpy as np
import pandas as pd

from cellmill.errors import SourceError

_PLACEHOLDER = object()
_MARK = object()
_NUMBERS = ("BININT", "BININT1", "BININT2", "BINFLOAT")
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_SET": set, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}


def read_object_frame(data: bytes, where: str) -> pd.DataFrame:
    """Return the object columns of the frame stored under the key ``df``.

    Parameters
    ----------
    data
        The bytes of the HDF5 file (fixed format of pandas).
    where
        The file's name, for errors.

    Raises
    ------
    SourceError
        The file holds no object columns, or an opcode that text columns do not need.
    """
    with h5py.File(io.BytesIO(data), "r") as file:
        group = file["df"]
        for name in group:
            if name.endswith("_values") and group[name].dtype == object:
                columns = [item.decode() for item in group[name.replace("_values", "_items")][:]]
                arrays = _decode(np.asarray(group[name][0]).tobytes(), where)
                cells = max((values for _, values in arrays), key=len, default=[])
                if not cells or len(cells) % len(columns):
                    raise SourceError("The number of cells is not a multiple of the columns.", where=where)
                rows = [cells[start : start + len(columns)] for start in range(0, len(cells), len(columns))]
                return pd.DataFrame(rows, columns=columns)
    raise SourceError("The frame has no object columns.", where=where)


def read_object_column(data: bytes, column: str, where: str) -> tuple[list[Any], list[Any]]:
    """Return the index and one text column of a pickled pandas table.

    Parameters
    ----------
    data
        The pickle.
    column
        Name of the column.
    where
        The file's name, for errors.

    Raises
    ------
    SourceError
        There is no such table with such a column, or an opcode that text columns do not need.
    """
    arrays = _decode(data, where)
    for shape, values in arrays:
        names = next((n for s, n in arrays if len(shape) == 2 and s == shape[:1] and column in n), None)
        index = next((n for s, n in arrays if s == shape[1:] and len(s) == 1), None)
        if names is not None and index is not None:
            start = names.index(column) * shape[1]
            return index, values[start : start + shape[1]]
    raise SourceError(f"The table has no text column {column!r}.", where=where)


def _decode(stream: bytes, where: str) -> list[tuple[tuple[int, ...], list[Any]]]:
    """Run a stack machine that knows text and containers only; return shape and cells of every array of objects."""
    stack: list[Any] = []
    memo: list[Any] = []
    arrays: list[tuple[tuple[int, ...], list[Any]]] = []

    def pop_to_mark() -> list[Any]:
        items: list[Any] = []
        while (item := stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    for opcode, argument, _ in pickletools.genops(stream):
        name = opcode.name
        if name in ("PROTO", "FRAME", "STOP"):
            continue
        if name in ("SHORT_BINUNICODE", "BINUNICODE", "SHORT_BINBYTES", "BINBYTES", *_NUMBERS):
            stack.append(argument)
        elif name in ("NONE", "NEWTRUE", "NEWFALSE"):
            stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
        elif name == "MEMOIZE":
            memo.append(stack[-1])
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[int(argument or 0)])
        elif name == "MARK":
            stack.append(_MARK)
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name == "APPEND":
            item = stack.pop()
            stack[-1].append(item)
        elif name == "APPENDS":
            items = pop_to_mark()
            stack[-1].extend(items)
        elif name == "ADDITEMS":
            items = pop_to_mark()
            stack[-1].update(items)
        elif name == "TUPLE":
            stack.append(tuple(pop_to_mark()))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            size = int(name[-1])
            stack[-size:] = [tuple(stack[-size:])]
        elif name in ("STACK_GLOBAL", "REDUCE", "NEWOBJ"):
            stack[-2:] = [_PLACEHOLDER]
        elif name == "SETITEM":
            del stack[-2:]
        elif name == "SETITEMS":
            pop_to_mark()
        elif name == "BUILD":
            # The state of an array: version, shape, dtype, order in memory, and the cells row by row in any case.
            state = stack.pop()
            if isinstance(state, tuple) and len(state) == 5 and isinstance(state[4], list):
                arrays.append((state[1], state[4]))
        else:
            raise SourceError(f"The frame holds {name}, which text columns do not need.", where=where)
    return arrays
