"""Cells as bytes, on their way from chunks to shards: one byte says which feature, one its count.

Features of a cell ascend, so the gap to the one before says which it is, and nearly all gaps and counts fit into a
byte. A cell is its gaps, then its counts, then what did not fit: for each byte that is zero four others, in order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cellmill.atlas.jit import compiled, inlined

I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]
MOST_BYTES = 10
"""Of an entry."""
_LARGEST = np.uint32(255)


@dataclass(frozen=True)
class PackedCells:
    """Packed cells, in any order.

    Attributes
    ----------
    content : uint8
        Their bytes, and perhaps those of others.
    starts, sizes : int64 [n]
        Where in `content` each cell begins, and its bytes.
    lengths : int64 [n]
        Entries of each cell.
    """

    content: U8
    starts: I64
    sizes: I64
    lengths: I64

    def take(self, order: I64 | slice) -> PackedCells:
        """Return some of the cells, in the order given; nothing is copied."""
        return PackedCells(self.content, self.starts[order], self.sizes[order], self.lengths[order])

    def copy_to(self, content: U8, starts: I64) -> None:
        """Copy all cells to where `starts` says, int64 [n]."""
        _copy(self.content, self.starts, self.sizes, content, starts)

    def stream(self, at_once: int) -> Iterator[U8]:
        """Yield the bytes of all cells, one after the other, about `at_once` of them at a time.

        What is yielded is overwritten by the next.
        """
        ends = np.cumsum(self.sizes)
        buffer = np.empty(max(at_once, int(self.sizes.max(initial=0))), np.uint8)
        for start, stop in ranges(ends, at_once):
            before = int(ends[start - 1]) if start else 0
            size = int(ends[stop - 1]) - before
            places = ends[start:stop] - self.sizes[start:stop] - before
            _copy(self.content, self.starts[start:stop], self.sizes[start:stop], buffer, places)
            yield buffer[:size]


def unpack(cells: PackedCells, features: npt.NDArray[Any], counts: npt.NDArray[Any]) -> bool:
    """Write features and counts of cells, one after the other; return whether the bytes were packed cells.

    Parameters
    ----------
    cells
        Which.
    features, counts : [sum of lengths]
        Where to; wide enough for every value.
    """
    return bool(_unpack(cells.content, cells.starts, cells.sizes, cells.lengths, features, counts))


def ranges(ends: I64, limit: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of neighbours that weigh at most `limit`, or one that weighs more by itself.

    Parameters
    ----------
    ends : int64 [n]
        Weight of all up to each, including it.
    limit
        Weight of a range.
    """
    start = 0
    while start < ends.size:
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + limit, side="right")))
        yield start, stop
        start = stop


@compiled
def pack_row(features: npt.NDArray[Any], counts: npt.NDArray[Any], out: U8) -> int:
    """Write one cell and return its bytes.

    Parameters
    ----------
    features, counts : [n]
        Ascending, and above zero.
    out
        At least ``MOST_BYTES * n`` long.
    """
    n = features.size
    if n == 0:
        return 0
    gaps, small = out[:n], out[n : 2 * n]
    wide = False
    # Without branches, and with narrow numbers, several entries are packed at once.
    for i in range(1, n):
        gap = np.uint32(features[i] - features[i - 1])
        fits = gap <= _LARGEST
        gaps[i] = np.uint8(gap) * np.uint8(fits)
        wide |= not fits
    for i in range(n):
        count = np.uint32(counts[i])
        fits = count <= _LARGEST
        small[i] = np.uint8(count) * np.uint8(fits)
        wide |= not fits
    first = np.int64(features[0]) + 1
    gaps[0] = first if first <= _LARGEST else 0
    at = 2 * n
    if wide or first > _LARGEST:
        for i in range(n):
            if gaps[i] == 0:
                _write_wide(out, at, np.int64(features[i]) - np.int64(features[i - 1]) if i else first)
                at += 4
        for i in range(n):
            if small[i] == 0:
                _write_wide(out, at, np.int64(counts[i]))
                at += 4
    return at


@compiled
def _unpack(
    content: U8, starts: I64, sizes: I64, lengths: I64, features: npt.NDArray[Any], counts: npt.NDArray[Any]
) -> bool:
    position = 0
    for row in range(starts.size):
        n, size = lengths[row], sizes[row]
        cell = content[starts[row] : starts[row] + size]
        out_features, out_counts = features[position : position + n], counts[position : position + n]
        if size < 2 * n:
            return False
        gaps, small = cell[:n], cell[n : 2 * n]
        last = np.int64(-1)
        at = 2 * n
        if size == at:
            for i in range(n):
                last += np.int64(gaps[i])
                out_features[i] = last
        else:
            for i in range(n):
                gap = np.int64(gaps[i])
                if gap == 0:
                    if at + 4 > size:
                        return False
                    gap = _read_wide(cell, at)
                    at += 4
                last += gap
                out_features[i] = last
        for i in range(n):
            out_counts[i] = small[i]
        if at < size:
            for i in range(n):
                if small[i] == 0:
                    if at + 4 > size:
                        return False
                    out_counts[i] = _read_wide(cell, at)
                    at += 4
        if at != size:
            return False
        position += n
    return True


@compiled
def _copy(content: U8, starts: I64, sizes: I64, out: U8, places: I64) -> None:
    for row in range(starts.size):
        source = content[starts[row] : starts[row] + sizes[row]]
        target = out[places[row] : places[row] + sizes[row]]
        for i in range(source.size):
            target[i] = source[i]


@inlined
def _write_wide(out: U8, at: int, value: Any) -> None:
    for i in range(4):
        out[at + i] = (value >> (8 * i)) & 255


@inlined
def _read_wide(cell: U8, at: int) -> np.int64:
    value = np.int64(0)
    for i in range(4):
        value |= np.int64(cell[at + i]) << (8 * i)
    return value
