"""Records of hash runs in ascending order: sorted, merged from several places, within bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cellmill.atlas.hash_run import RECORD, HashRun

U64 = npt.NDArray[np.uint64]


class Reader(Protocol):
    """Gives records in ascending order."""

    def next(self, n: int) -> U64:
        """Return about the next n records, uint64 [m, 3]; none at the end."""
        ...


class FileReader:
    """Records of a local file.

    Parameters
    ----------
    path
        Of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._done = path, 0

    def next(self, n: int) -> U64:
        """Return the next n records."""
        found = np.fromfile(self._path, dtype="<u8", count=3 * n, offset=self._done * RECORD).reshape(-1, 3)
        self._done += len(found)
        return found


class RunReader:
    """Records of a run, of those members that count.

    Parameters
    ----------
    run
        The run.
    place : int64 [members]
        New place of each member, ascending; -1 for one that does not count.
    """

    def __init__(self, run: HashRun, place: npt.NDArray[np.int64]) -> None:
        self._run, self._place, self._done = run, place, 0

    def next(self, n: int) -> U64:
        """Return about the next n records."""
        while self._done < self._run.n:
            stop = min(self._done + n, self._run.n)
            found = self._run.read([self._done], [stop])
            self._done = stop
            low = found[:, 2] & np.uint64(0xFFFFFFFF)
            member = (low & np.uint64(0x7FFFFFFF)).astype(np.int64)
            place = self._place[member]
            kept = place >= 0
            if kept.any():
                found = found[kept].copy()
                found[:, 2] += place[kept].astype(np.uint64) - member[kept].astype(np.uint64)
                return found
        return np.empty((0, 3), np.uint64)


def sort_records(records: U64) -> U64:
    """Return records in ascending order, uint64 [n, 3]; parts that are sorted already cost little."""
    order = np.argsort(records[:, 0], kind="stable")
    ordered: U64 = records[order]
    same = ordered[1:, 0] == ordered[:-1, 0]
    if same.any():
        # Equal upper halves are rare, but for nearly empty cells.
        tied = np.flatnonzero(np.concatenate([same, [False]]) | np.concatenate([[False], same]))
        part = ordered[tied]
        ordered[tied] = part[np.lexsort((part[:, 2], part[:, 1], part[:, 0]))]
    return ordered


def merge(readers: Sequence[Reader], memory: int = 1 << 26) -> Iterator[U64]:
    """Yield the records of all readers in ascending order.

    Parameters
    ----------
    readers
        Each ascending.
    memory
        Bytes that records which wait may take.
    """
    step = max(1024, memory // RECORD // max(1, 2 * len(readers)))
    waiting = [(reader, reader.next(2 * step)) for reader in readers]
    while waiting := [pair for pair in waiting if len(pair[1])]:
        # Whatever is read later comes after the last record of the reader that got least far.
        bound = min(tuple(records[-1].tolist()) for _, records in waiting)
        cuts = [_upto(records, bound) for _, records in waiting]
        yield sort_records(np.concatenate([records[:cut] for (_, records), cut in zip(waiting, cuts, strict=True)]))
        waiting = [
            (reader, _filled(reader, records[cut:], step)) for (reader, records), cut in zip(waiting, cuts, strict=True)
        ]


def _filled(reader: Reader, rest: U64, step: int) -> U64:
    """Return what waits, with more of it if it is little: so each round takes a good part of every reader."""
    return np.concatenate([rest, reader.next(step)]) if len(rest) < step else rest


def _upto(records: U64, bound: tuple[int, ...]) -> int:
    """Return how many records are not above the bound."""
    low, high = 0, len(records)
    for column in range(3):
        part = records[low:high, column]
        value = np.uint64(bound[column])
        low, high = low + int(np.searchsorted(part, value, "left")), low + int(np.searchsorted(part, value, "right"))
    return high
