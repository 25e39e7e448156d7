"""Reading a shard whose counts are in an AnnData zarr store of somebody else.

What is read is moved from columns to features as an ingestion does it, and each cell is compared with the content hash
that it had when the store was linked: other counts are never handed on. So files that were merely copied or touched are
as good as before, and damage is that of the shards whose cells it changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cellmill.atlas.cells import CellsFile
from cellmill.atlas.chunks import Emit
from cellmill.atlas.content import content_hash, hash_bytes
from cellmill.atlas.damaged_entries import DamagedEntriesError
from cellmill.atlas.entry import ShardEntry
from cellmill.atlas.files import list_files
from cellmill.atlas.layout import count_dtype, index_dtype
from cellmill.atlas.link import ARRAYS, read_link
from cellmill.atlas.linked_rows import known_features
from cellmill.atlas.store_vector import UnreadableChunkError, open_vectors
from cellmill.errors import IntegrityError, SourceError
from cellmill.storage import Storage

I64 = npt.NDArray[np.int64]
_Pair = tuple[npt.NDArray[Any], npt.NDArray[Any]]

_AT_ONCE = 1 << 17
"""Entries that are moved at a time: few enough to stay in a processor's cache."""
_FIX = "Restore the store, or link it again: `cellmill atlas link` replaces what it was."


class LinkedShard:
    """The parts of a shard that lies in an AnnData zarr store.

    Attributes
    ----------
    indptr : int64 [n_rows + 1]
        Where rows begin, counted in entries of features.
    tokens : uint32 [n_features]
        Token of each feature.
    columns, counts
        Feature and count of each entry.

    Raises
    ------
    IntegrityError
        The link or the cells' metadata is damaged, or files of the store are missing or have another size.
    """

    def __init__(self, storage: Storage, entry: ShardEntry) -> None:
        self._entry = entry
        self._link = link = read_link(storage, entry)
        table = CellsFile(storage, entry).read(["source_row", "n_features", "content_hash"])
        rows: I64 = table["source_row"].to_numpy().astype(np.int64)
        self._lengths = table["n_features"].to_numpy()
        self.indptr: I64 = np.concatenate([[0], np.cumsum(self._lengths, dtype=np.int64)])
        # All values have 16 bytes, one after the other.
        hashes = table["content_hash"].combine_chunks()
        self._hashes = np.frombuffer(hashes.buffers()[-1], np.uint8).reshape(-1, 16)[hashes.offset :][: entry.n_rows]
        self.tokens = link.tokens
        store = storage.beside(link.location, entry.source_digest)
        there = {file.key: file.size for file in list_files(store, link.matrix)}
        for key, size in link.files.items():
            if key not in there:
                raise self._changed(f"{key} is not there.")
            if there[key] != size:
                raise self._changed(f"{key} had {size:,} bytes and has {there[key]:,}.")
        try:
            indptr, self._indices, self._values = open_vectors(store, link.matrix, ARRAYS, there.keys())
            first, last = int(rows.min(initial=0)), int(rows.max(initial=-1))
            starts = indptr.read(first, last + 2).astype(np.int64)
        except SourceError as error:
            raise self._changed(error.what) from error
        if np.any(np.diff(starts) < 0):
            raise self._changed("Its rows are not those that were linked.")
        self._begin, self._end = starts[rows - first], starts[rows - first + 1]
        # Most stores have none.
        self._binary = link.binary if link.binary.any() else link.binary[:0]
        self.columns = _Part(self, 0, index_dtype(link.tokens.size))
        self.counts = _Part(self, 1, count_dtype(link.largest))

    def read(self, begin: I64, end: I64, columns: Emit, counts: Emit) -> None:
        """Read features and counts of pieces, each of whole rows, that are ascending and apart.

        Parameters
        ----------
        begin, end : int64 [k]
            Entries ``begin[i]`` up to, not including, ``end[i]``.
        columns, counts
            Called with features, with counts, and with their place among all that are read.

        Raises
        ------
        IntegrityError
            Files are missing, or a cell has other counts than when it was linked.
        """
        rows = self._rows(begin, end)
        if not rows.size:
            return
        low, high = self._begin[rows], self._end[rows]
        try:
            wrong = self._move(rows, low, high, columns, counts)
        except UnreadableChunkError as error:
            first, last = error.entries
            raise self._changed(error.what, rows[(low < last) & (high > first)]) from error
        except SourceError as error:
            raise self._changed(error.what) from error
        if wrong.size:
            raise self._changed("Its counts are not those that were linked.", wrong)

    def _rows(self, begin: I64, end: I64) -> I64:
        """Return the rows that have the entries of pieces."""
        begin, end = begin[end > begin], end[end > begin]
        first, last = np.searchsorted(self.indptr, begin, side="right") - 1, np.searchsorted(self.indptr, end)
        if np.any(self.indptr[first] != begin) or np.any(self.indptr[last] != end):
            raise ValueError("parts of rows are asked for")
        every = [np.arange(a, b) for a, b in zip(first.tolist(), last.tolist(), strict=True)]
        return np.concatenate([np.empty(0, np.int64), *every])

    def _move(self, rows: I64, low: I64, high: I64, columns: Emit, counts: Emit) -> I64:
        """Hand on the entries of rows; return those rows that do not have the content that was linked."""
        spans = [(start, stop) for start, stop, _ in _spans(low, high)]
        indices, values = self._indices.reading(spans), self._values.reading(spans)
        starts = np.concatenate([[0], np.cumsum(high - low)])
        size = max(int((starts[b] - starts[a]).max()) for a, b in _some(starts))
        raw = np.empty(size, self._indices.dtype), np.empty(size, self._values.dtype)
        moved = np.empty(size + 1, self.columns.dtype), np.empty(size + 1, self.counts.dtype)
        place = np.concatenate([[0], np.cumsum(self._lengths[rows], dtype=np.int64)])
        wrong = [rows[:0]]
        for a, b in _some(starts):
            own = starts[a : b + 1] - starts[a]
            for start, stop, first in _spans(low[a:b], high[a:b]):
                for source, out in zip((indices, values), raw, strict=True):
                    source.take(start, stop, out[first : first + stop - start])
            if (found := self._known(rows[a:b], own, raw, moved)) is None:
                alone = [self._known(rows[a + i : a + i + 1], own[i : i + 2], raw, moved) for i in range(b - a)]
                wrong.append(rows[a:b][[one is None for one in alone]])
                continue
            at = slice(int(place[a]), int(place[b]))
            columns(found[0], at)
            counts(found[1], at)
        return np.concatenate(wrong)

    def _known(self, rows: I64, starts: I64, raw: _Pair, moved: _Pair) -> _Pair | None:
        """Move entries of rows from columns to features; return None if they are not those that were linked.

        Parameters
        ----------
        rows, starts : int64 [n], int64 [n + 1]
            The rows, and where their entries are in `raw`.
        raw, moved
            Columns and values, and where features and counts are to be.
        """
        link, indptr = self._link, np.empty(starts.size, np.int64)
        columns, values = (part[starts[0] : starts[-1]] for part in raw)
        if not known_features(starts - starts[0], columns, values, link.target, self._binary, *moved, indptr):
            return None
        features, counts = (part[: indptr[-1]] for part in moved)
        return (features, counts) if self._are(rows, indptr, features, counts) else None

    def _are(self, rows: I64, indptr: I64, features: npt.NDArray[Any], counts: npt.NDArray[Any]) -> bool:
        """Return whether rows have the content that was linked."""
        if not np.array_equal(np.diff(indptr), self._lengths[rows]):
            return False
        return np.array_equal(hash_bytes(content_hash(indptr, features, counts, self._link.keys)), self._hashes[rows])

    def _changed(self, what: str, rows: I64 | None = None) -> IntegrityError:
        """Return the error that tells what is wrong with some rows, or with all that was to be read."""
        entry = self._entry
        what = f"The store of shard {entry.dataset}/{entry.digest} was changed or damaged since it was linked. {what}"
        where = f"{self._link.location}: {self._link.matrix}"
        if rows is None:
            return IntegrityError(what, where=where, fix=_FIX)
        ranges = list(zip(self.indptr[rows].tolist(), self.indptr[rows + 1].tolist(), strict=True))
        return DamagedEntriesError(what, where=where, fix=_FIX, ranges=ranges)


@dataclass(frozen=True)
class _Part:
    """The features or the counts as an array of entries; both cost as much as one."""

    shard: LinkedShard
    which: int
    dtype: np.dtype[Any]

    @property
    def length(self) -> int:
        return int(self.shard.indptr[-1])

    def read(self, begin: I64, end: I64, emit: Emit) -> None:
        emits = (emit, _pass_over) if self.which == 0 else (_pass_over, emit)
        self.shard.read(begin, end, *emits)


def _pass_over(_: npt.NDArray[Any], __: slice) -> None:
    pass


def _some(starts: I64) -> Iterator[tuple[int, int]]:
    """Yield ranges of rows of at most `_AT_ONCE` entries each, or of one row."""
    first, n = 0, starts.size - 1
    while first < n:
        last = int(np.searchsorted(starts, starts[first] + _AT_ONCE, side="right")) - 1
        last = min(max(last, first + 1), n)
        yield first, last
        first = last


def _spans(low: I64, high: I64) -> Iterator[tuple[int, int, int]]:
    """Yield rows that lie side by side as one: where they begin and end, and the place of their first entry."""
    apart = np.flatnonzero(low[1:] != high[:-1]) + 1
    first, last = np.concatenate([[0], apart]), np.concatenate([apart, [low.size]]) - 1
    place = np.concatenate([[0], np.cumsum(high - low)])[first]
    yield from zip(low[first].tolist(), high[last].tolist(), place.tolist(), strict=True)
