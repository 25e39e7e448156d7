"""Searching runs of content hashes for the cells that equal some given ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cellmill.atlas.hash_run import BLOCK, HashRun
from cellmill.atlas.jit import compiled, inlined

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]

NOBODY = np.iinfo(np.int64).max

_SLACK = 64
"""Records that a hash may be away from where a line between two fences puts it: four standard deviations."""
_MANY = 2 * _SLACK
"""Of so many records for each hash all are read."""
_AT_ONCE = 1 << 18
"""Records that are read at once."""


@dataclass(frozen=True)
class Matches:
    """What equals some cells in the runs of a snapshot.

    Attributes
    ----------
    shown : int64 [n]
        First of the shards that show an equal cell, `NOBODY` for none.
    hidden : int64 [n]
        First of the shards that hide an equal cell.
    n_hidden : int64 [n]
        How many equal cells are hidden.
    """

    shown: I64
    hidden: I64
    n_hidden: I64

    @classmethod
    def none(cls, n: int) -> Matches:
        """Return no match for n cells."""
        return cls(np.full(n, NOBODY), np.full(n, NOBODY), np.zeros(n, np.int64))


def search(run: HashRun, shard_of: I64, keys: U64, by_barcode: npt.NDArray[np.bool_], matches: Matches) -> None:
    """Add what a run has to the matches.

    Parameters
    ----------
    run
        The run.
    shard_of : int64 [members]
        Number of each member's shard, -1 for one that does not count.
    keys : uint64 [n, 3]
        As `shard_keys` gives them, in ascending order.
    by_barcode : bool [n]
        Whether barcodes have to be equal, too.
    matches
        Of the n cells.
    """
    if not run.n or not len(keys):
        return
    begins = run.fences[:, 0]
    first, last = int(np.searchsorted(begins, keys[0, 0], "left")), int(np.searchsorted(begins, keys[-1, 0], "right"))
    start, stop = max(first - 1, 0) * BLOCK, min(last * BLOCK, run.n)
    if len(keys) * _MANY >= stop - start:
        # So many keys that all is read: once through the records, with the keys beside them.
        for begin in range(start, stop, _AT_ONCE):
            records = run.read([begin], [min(begin + _AT_ONCE, stop)])
            _pass(records, keys, by_barcode, shard_of, matches.shown, matches.hidden, matches.n_hidden)
        return
    cell = np.arange(len(keys))
    near = _windows(run.fences, run.n, keys, by_barcode, _SLACK)
    covered = _match(run, shard_of, keys, by_barcode, cell, near, matches)
    missed = np.flatnonzero(~covered)
    if missed.size:
        whole = _windows(run.fences, run.n, keys[missed], by_barcode[missed], 0)
        _match(run, shard_of, keys, by_barcode, missed, whole, matches)


def _match(
    run: HashRun,
    shard_of: I64,
    keys: U64,
    by_barcode: npt.NDArray[np.bool_],
    cell: I64,
    windows: I64,
    matches: Matches,
) -> npt.NDArray[np.bool_]:
    """Look for cells in windows of the run; return which windows held all that there is to find."""
    long = (windows[:, 1] - windows[:, 0] - 1) // _AT_ONCE + 1
    covered = np.zeros(len(cell), np.bool_)
    at = np.repeat(np.arange(len(cell)), long)
    begin = windows[at, 0] + _AT_ONCE * (np.arange(at.size) - np.repeat(np.cumsum(long) - long, long))
    end = np.minimum(begin + _AT_ONCE, windows[at, 1])
    for some, starts, stops, offset in _readings(begin, end, run.gap):
        records = run.read(starts, stops)
        sure, which = windows[at[some], 2], cell[at[some]]
        _compare(
            records, offset, begin[some], end[some], sure, keys, by_barcode, which, at[some],
            shard_of, covered, matches.shown, matches.hidden, matches.n_hidden,
        )  # fmt: skip
    return covered


def _readings(begin: I64, end: I64, gap: int) -> Iterator[tuple[slice, list[int], list[int], I64]]:
    """Yield windows that are read together, the ranges to be read for them, and where each window will be."""
    piece, starts, stops = _ranges(begin, end, gap, _AT_ONCE)
    size = stops - starts
    before = np.cumsum(size) - size
    first = 0
    while first < len(starts):
        last = max(first + 1, int(np.searchsorted(before, before[first] + _AT_ONCE, "left")))
        some = slice(int(np.searchsorted(piece, first)), int(np.searchsorted(piece, last)))
        offset = begin[some] - starts[piece[some]] + before[piece[some]] - before[first]
        yield some, starts[first:last].tolist(), stops[first:last].tolist(), offset
        first = last


@compiled
def _ranges(begin: I64, end: I64, gap: int, most: int) -> tuple[I64, I64, I64]:
    """Join windows that are near each other; return the range of each window, and where the ranges begin and end."""
    piece = np.empty(begin.size, np.int64)
    starts, stops = np.empty(begin.size, np.int64), np.empty(begin.size, np.int64)
    n = -1
    for i in range(begin.size):
        if n >= 0 and begin[i] <= stops[n] + gap and max(stops[n], end[i]) - min(starts[n], begin[i]) <= most:
            starts[n] = min(starts[n], begin[i])
            stops[n] = max(stops[n], end[i])
        else:
            n += 1
            starts[n], stops[n] = begin[i], end[i]
        piece[i] = n
    return piece, starts[: n + 1], stops[: n + 1]


@inlined
def _precedes(a0: np.uint64, a1: np.uint64, a2: np.uint64, b0: np.uint64, b1: np.uint64, b2: np.uint64) -> bool:
    return bool(a0 < b0 or (a0 == b0 and (a1 < b1 or (a1 == b1 and a2 < b2))))


@inlined
def _lower_bound(records: U64, start: int, stop: int, b0: np.uint64, b1: np.uint64, b2: np.uint64) -> int:
    """Return the first place in ``[start, stop)`` whose record does not precede the given one."""
    while start < stop:
        middle = (start + stop) // 2
        if _precedes(records[middle, 0], records[middle, 1], records[middle, 2], b0, b1, b2):
            start = middle + 1
        else:
            stop = middle
    return start


@inlined
def _gallop(keys: U64, start: int, b0: np.uint64, b1: np.uint64, b2: np.uint64) -> int:
    """Return the first place from `start` on whose key does not precede the given one, found soon if it is near."""
    step = 1
    stop = start
    while stop < len(keys) and _precedes(keys[stop, 0], keys[stop, 1], keys[stop, 2], b0, b1, b2):
        start = stop + 1
        stop += step
        step *= 2
    return _lower_bound(keys, start, min(stop, len(keys)), b0, b1, b2)


@compiled
def _pass(
    records: U64,
    keys: U64,
    by_barcode: npt.NDArray[np.bool_],
    shard_of: I64,
    shown: I64,
    hidden: I64,
    n_hidden: I64,
) -> None:
    """Add records to the matches of the keys that they equal; both ascend."""
    content = named = 0
    for i in range(len(records)):
        high, low, tag = records[i, 0], records[i, 1], records[i, 2]
        content = _gallop(keys, content, high, low, np.uint64(0))
        if content == len(keys):
            return
        if keys[content, 0] != high or keys[content, 1] != low:
            continue
        if by_barcode[content]:
            barcode = (tag >> np.uint64(32)) << np.uint64(32)
            named = _gallop(keys, max(named, content), high, low, barcode)
            if named < len(keys) and keys[named, 0] == high and keys[named, 1] == low and keys[named, 2] == barcode:
                _add(tag, named, shard_of, shown, hidden, n_hidden)
            continue
        key = content
        while key < len(keys) and keys[key, 0] == high and keys[key, 1] == low:
            _add(tag, key, shard_of, shown, hidden, n_hidden)
            key += 1


@inlined
def _add(tag: np.uint64, key: int, shard_of: I64, shown: I64, hidden: I64, n_hidden: I64) -> None:
    shard = shard_of[np.int64(tag & np.uint64(0x7FFFFFFF))]
    if shard >= 0:
        if tag & np.uint64(0x80000000):
            hidden[key] = min(hidden[key], shard)
            n_hidden[key] += 1
        else:
            shown[key] = min(shown[key], shard)


@compiled
def _windows(fences: U64, n: int, keys: U64, by_barcode: npt.NDArray[np.bool_], slack: int) -> I64:
    """Return where the records that equal each key are: begin, end, and whether that is sure.

    With no slack these are whole blocks, which is sure. Otherwise it is where a line between fences leads.
    """
    out = np.empty((len(keys), 3), np.int64)
    for i in range(len(keys)):
        high, low = keys[i, 0], keys[i, 1]
        least = keys[i, 2] if by_barcode[i] else np.uint64(0)
        most = keys[i, 2] | np.uint64(0xFFFFFFFF) if by_barcode[i] else np.uint64(0xFFFFFFFFFFFFFFFF)
        first = max(_lower_bound(fences, 0, len(fences), high, low, least) - 1, 0)
        last = first
        while last + 1 < len(fences) and not _precedes(
            high, low, most, fences[last + 1, 0], fences[last + 1, 1], fences[last + 1, 2]
        ):
            last += 1
        begin, end = first * BLOCK, min((last + 1) * BLOCK, n)
        sure = True
        if slack and first == last and first + 1 < len(fences):
            span = float(fences[first + 1, 0] - fences[first, 0])
            if span > 0.0 and high >= fences[first, 0]:
                guess = begin + int(float(high - fences[first, 0]) / span * BLOCK)
                a, b = max(begin, guess - slack), min(end, guess + slack)
                if a < b:
                    sure = a == begin and b == end
                    begin, end = a, b
        out[i, 0], out[i, 1], out[i, 2] = begin, end, sure
    return out


@compiled
def _compare(
    records: U64,
    offset: I64,
    begin: I64,
    end: I64,
    sure: I64,
    keys: U64,
    by_barcode: npt.NDArray[np.bool_],
    cell: I64,
    window: I64,
    shard_of: I64,
    covered: npt.NDArray[np.bool_],
    shown: I64,
    hidden: I64,
    n_hidden: I64,
) -> None:
    """Add the records that equal cells to their matches, unless the window may not hold all of them."""
    for i in range(offset.size):
        key = cell[i]
        high, low = keys[key, 0], keys[key, 1]
        least = keys[key, 2] if by_barcode[key] else np.uint64(0)
        most = keys[key, 2] | np.uint64(0xFFFFFFFF) if by_barcode[key] else np.uint64(0xFFFFFFFFFFFFFFFF)
        a, b = offset[i], offset[i] + end[i] - begin[i]
        if not sure[i]:
            # Blocks begin and end at fences, beyond which nothing equal is.
            left = begin[i] % BLOCK == 0 or _precedes(records[a, 0], records[a, 1], records[a, 2], high, low, least)
            right = end[i] % BLOCK == 0 or _precedes(
                high, low, most, records[b - 1, 0], records[b - 1, 1], records[b - 1, 2]
            )
            if not (left and right):
                continue
        covered[window[i]] = True
        for place in range(_lower_bound(records, a, b, high, low, least), b):
            if _precedes(high, low, most, records[place, 0], records[place, 1], records[place, 2]):
                break
            _add(records[place, 2], key, shard_of, shown, hidden, n_hidden)
