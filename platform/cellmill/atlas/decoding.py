"""Decoding chunks, and bringing the entries of rows to where they are wanted, compiled.

They stand in one file because numba's cache of compiled code does not notice changes in another one. Places are
addresses, so that the rows of one read may go to many arrays; who gives them keeps these arrays alive.
"""

from __future__ import annotations

import ctypes
from importlib import import_module
from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from cellmill.atlas.jit import compiled

blosc: Any = import_module("numcodecs.blosc")
llvm: Any = import_module("llvmlite.binding")
_entries: Any = import_module("numba").carray

# Blosc's own threads and the lock around them gain nothing: reads are spread over threads and tasks already.
blosc.use_threads = False

# Under a name of ours, because other libraries of the process may bring a blosc of their own.
_DECODER = ctypes.CDLL(blosc.__file__).blosc_decompress_ctx
llvm.add_symbol("cellmill_blosc_decompress", ctypes.cast(_DECODER, ctypes.c_void_p).value)
_decompress: Any = types.ExternalFunction(
    "cellmill_blosc_decompress", types.int32(types.intp, types.intp, types.uintp, types.int32)
)

NOWHERE = 0
"""Address of rows that are not wanted."""


def _to_pointer(_: Any, address: Any, like: Any) -> Any:
    """Type and code of an address as a pointer to entries of the type of an array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    pointer: Any = types.CPointer(like.dtype)
    return pointer(types.int64, like), generate


_pointer: Any = intrinsic(_to_pointer)


@compiled
def decode(content: Any, out: Any) -> Any:
    """Decode a blosc buffer; return whether it holds just as many bytes.

    Parameters
    ----------
    content : uint8 [size]
        Its bytes, whose checksum was verified.
    out : [n]
        Where its entries are to be.
    """
    if content.size < 16 or _number(content, 4) != out.nbytes or _number(content, 12) != content.size:
        return False
    return _decompress(content.ctypes.data, out.ctypes.data, out.nbytes, 1) == out.nbytes


@compiled
def _number(content: Any, at: Any) -> Any:
    """Return a number of 32 bits, little-endian."""
    number = np.int64(0)
    for i in range(4):
        number |= np.int64(content[at + i]) << (8 * i)
    return number


@compiled
def place(entries: Any, first: Any, begin: Any, end: Any, to: Any, like: Any) -> None:
    """Write entries to where their rows go.

    Parameters
    ----------
    entries : [n]
        The first of them is number `first`.
    begin, end : int64 [rows]
        Numbers of the entries of each row, ascending and apart; some may lie before or after what is here.
    to : int64 [rows]
        Address of the first entry of each row, or `NOWHERE`.
    like
        An array of the type that is to be written.
    """
    row = np.searchsorted(end, first, side="right")
    while row < begin.size and begin[row] < first + entries.size:
        low, high = max(begin[row], first), min(end[row], first + entries.size)
        if to[row] != NOWHERE:
            source = entries[low - first : high - first]
            target = _entries(_pointer(to[row] + (low - begin[row]) * like.itemsize, like), (source.size,))
            for j in range(source.size):
                target[j] = source[j]
        row += 1


@compiled
def place_tokens(tokens: Any, columns: Any, first: Any, begin: Any, end: Any, to: Any, like: Any) -> None:
    """Write the tokens of entries' columns to where their rows go; see `place`."""
    row = np.searchsorted(end, first, side="right")
    while row < begin.size and begin[row] < first + columns.size:
        low, high = max(begin[row], first), min(end[row], first + columns.size)
        if to[row] != NOWHERE:
            source = columns[low - first : high - first]
            target = _entries(_pointer(to[row] + (low - begin[row]) * like.itemsize, like), (source.size,))
            for j in range(source.size):
                target[j] = tokens[source[j]]
        row += 1


@compiled
def place_chunks(
    content: Any, bounds: Any, numbers: Any, chunk: Any, tokens: Any, begin: Any, end: Any, to: Any, like: Any
) -> Any:
    """Decode chunks one after the other and write their entries to where their rows go.

    Parameters
    ----------
    content : uint8 [size]
        The chunks, whose checksums were verified.
    bounds : int64 [k, 2]
        Where each begins and ends in it.
    numbers : int64 [k]
        Their numbers.
    chunk : [n]
        Scratch: what a chunk is decoded into.
    tokens : [n_features]
        Token of each column, if the chunks are of columns; else empty.
    begin, end, to, like
        See `place`.

    Returns
    -------
    int
        Which of the chunks does not hold `n` entries; -1 for none.
    """
    for k in range(numbers.size):
        if not decode(content[bounds[k, 0] : bounds[k, 1]], chunk):
            return k
        first = numbers[k] * chunk.size
        if tokens.size:
            place_tokens(tokens, chunk, first, begin, end, to, like)
        else:
            place(chunk, first, begin, end, to, like)
    return -1


@compiled
def copy_places(source: Any, to: Any, lengths: Any, like: Any) -> None:
    """Copy entries from address to address: int64 [k] each, apart from each other; `like` as `place` has it."""
    for i in range(source.size):
        old = _entries(_pointer(source[i], like), (lengths[i],))
        new = _entries(_pointer(to[i], like), (lengths[i],))
        for j in range(lengths[i]):
            new[j] = old[j]
