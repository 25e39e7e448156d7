"""Read the text columns of a pandas HDF5 frame without unpickling anything.

PyTables stores object columns as a pickled array. Here the opcodes are only decoded, never executed: strings,
None and collections of strings are kept, whatever would import or call something becomes an inert placeholder.
"""

from __future__ import annotations

import io
import pickletools
from typing import Any

import h5py
import numpy as np
import pandas as pd

from cellmill.errors import SourceError

_PLACEHOLDER = object()
_MARK = object()


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
                cells = _decode(np.asarray(group[name][0]).tobytes(), where)
                if len(cells) % len(columns):
                    raise SourceError("The number of cells is not a multiple of the columns.", where=where)
                rows = [cells[start : start + len(columns)] for start in range(0, len(cells), len(columns))]
                return pd.DataFrame(rows, columns=columns)
    raise SourceError("The frame has no object columns.", where=where)


def _decode(stream: bytes, where: str) -> list[Any]:
    """Run a stack machine that knows text and containers only; the longest list is the array's content."""
    stack: list[Any] = []
    memo: list[Any] = []
    longest: list[Any] = []

    def pop_to_mark() -> list[Any]:
        items: list[Any] = []
        while (item := stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    for opcode, argument, _ in pickletools.genops(stream):
        name = opcode.name
        if name in ("PROTO", "FRAME", "STOP"):
            continue
        if name in ("SHORT_BINUNICODE", "BINUNICODE", "SHORT_BINBYTES", "BININT", "BININT1", "BININT2", "BINFLOAT"):
            stack.append(argument)
        elif name in ("NONE", "NEWTRUE", "NEWFALSE"):
            stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
        elif name == "MEMOIZE":
            memo.append(stack[-1])
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[int(argument or 0)])
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "EMPTY_SET":
            stack.append(set())
        elif name == "APPEND":
            item = stack.pop()
            stack[-1].append(item)
        elif name == "APPENDS":
            items = pop_to_mark()
            stack[-1].extend(items)
            longest = max(longest, stack[-1], key=len)
        elif name == "ADDITEMS":
            items = pop_to_mark()
            stack[-1].update(items)
        elif name == "TUPLE":
            stack.append(tuple(pop_to_mark()))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            size = int(name[-1])
            stack[-size:] = [tuple(stack[-size:])]
        elif name in ("STACK_GLOBAL", "REDUCE"):
            stack[-2:] = [_PLACEHOLDER]
        elif name == "BUILD":
            stack.pop()
        else:
            raise SourceError(f"The frame holds {name}, which text columns do not need.", where=where)
    return longest
