"""Reading a shard: its columns' tokens, and runs of its rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cellmill.atlas.arrays import ShardArrays, load_tokens, open_arrays
from cellmill.atlas.entry import ShardEntry
from cellmill.atlas.jit import compiled
from cellmill.errors import IntegrityError
from cellmill.genes import N_SPECIALS
from cellmill.storage import Storage

I64 = npt.NDArray[np.int64]


class Shard:
    """An open shard. Get one with `open_shard`.

    Attributes
    ----------
    entry
        Its catalog row.
    tokens : uint32[n_features]
        Token id of each column.
    indptr : int64[n_rows + 1]
        Where each row's entries begin.
    arrays
        What it consists of.
    """

    def __init__(self, storage: Storage, entry: ShardEntry) -> None:
        self.entry = entry
        self._storage = storage
        self._where = storage.join(entry.shard_path)
        self.arrays = open_arrays(storage, entry)
        self.indptr, self.tokens = self.arrays.indptr, self.arrays.tokens
        self._check()

    @property
    def n_rows(self) -> int:
        """Number of rows, also of those that a snapshot hides."""
        return self.indptr.size - 1

    @property
    def count_dtype(self) -> np.dtype[Any]:
        """Type of its counts."""
        return self.arrays.counts.dtype

    def gather(
        self, starts: npt.ArrayLike, stops: npt.ArrayLike
    ) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[np.int64]]:
        """Return runs of rows, one after the other.

        Parameters
        ----------
        starts, stops : int64[k]
            Rows ``starts[i]`` up to, not including, ``stops[i]``.

        Returns
        -------
        columns : uint16 or uint32[nnz]
            Column of each entry, ascending within a row.
        counts : uint8, uint16 or uint32[nnz]
            Count of each entry, above zero.
        indptr : int64[n + 1]
            Where each of the n rows begins in the two.

        Raises
        ------
        IntegrityError
            Bytes are missing, or do not have the checksum they were written with.
        """
        first, last = np.asarray(starts, dtype=np.int64), np.asarray(stops, dtype=np.int64)
        if first.size and (first.min() < 0 or last.max() > self.n_rows or np.any(last < first)):
            raise IndexError(f"rows {first.min()} to {last.max()} are asked of a shard of {self.n_rows} rows")
        begin, end = self.indptr[first], self.indptr[last]
        offsets = np.concatenate([[0], np.cumsum(end - begin)])
        columns, counts = _pieces(self.arrays, begin, end, offsets)
        return columns, counts, _row_starts(self.indptr, first, last, offsets)

    def _check(self) -> None:
        entry = self.entry
        shapes = (self.n_rows, self.tokens.size, self.arrays.columns.length, self.arrays.counts.length)
        wanted = (entry.n_rows, entry.n_features, entry.nnz, entry.nnz)
        lengths = np.diff(self.indptr)
        rows_fit = self.indptr[0] == 0 and self.indptr[-1] == entry.nnz and not np.any(lengths < 0)
        tokens_fit = self.tokens.min(initial=N_SPECIALS) >= N_SPECIALS and (
            self.tokens.max(initial=0) < entry.vocabulary_size
        )
        if shapes != wanted or not rows_fit or not tokens_fit:
            raise IntegrityError(
                f"The shard is not what the catalog says: rows, columns and entries are {shapes}, not {wanted}.",
                where=self._where,
                fix="`cellmill atlas verify` lists what is damaged; restore it from a copy, or ingest again.",
            )


def open_shard(storage: Storage, entry: ShardEntry) -> Shard:
    """Open a shard for reading; row starts and tokens are loaded, counts stay where they are.

    Raises
    ------
    IntegrityError
        A file is missing or damaged, or the shard is not what the catalog says.
    """
    return Shard(storage, entry)


def read_tokens(storage: Storage, entry: ShardEntry) -> npt.NDArray[np.uint32]:
    """Return the token id of each column of a shard, uint32 [n_features], without opening the rest."""
    return load_tokens(storage, entry)


def _pieces(arrays: ShardArrays, begin: I64, end: I64, offsets: I64) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return columns and counts of pieces one after the other, in any order, overlapping or not."""
    if np.all(begin[1:] >= end[:-1]):
        return arrays.pieces(begin, end)
    # Each chunk is decoded once: what overlaps is read as one span, and copied to where it is wanted.
    order = np.argsort(begin, kind="stable")
    low, reach = begin[order], np.maximum.accumulate(end[order])
    first = np.concatenate([[True], low[1:] > reach[:-1]])
    span_low, span_high = low[first], reach[np.concatenate([np.flatnonzero(first)[1:] - 1, [low.size - 1]])]
    spans = arrays.pieces(span_low, span_high)
    starts = np.concatenate([[0], np.cumsum(span_high - span_low)])
    span = np.searchsorted(span_low, begin, side="right") - 1
    at = starts[span] + begin - span_low[span]
    columns, counts = (np.empty(int(offsets[-1]), part.dtype) for part in spans)
    for part, out in zip(spans, (columns, counts), strict=True):
        copy_pieces(part, at, at + end - begin, out)
    return columns, counts


@compiled
def copy_pieces(source: npt.NDArray[Any], begin: I64, end: I64, out: npt.NDArray[Any]) -> None:
    """Write pieces of an array, in any order, one after the other."""
    position = 0
    for piece in range(begin.size):
        for i in range(begin[piece], end[piece]):
            out[position] = source[i]
            position += 1


@compiled
def _row_starts(indptr: I64, first: I64, last: I64, offsets: I64) -> I64:
    """Return where each row of the runs begins in their concatenation."""
    starts = np.empty((last - first).sum() + 1, dtype=np.int64)
    position = 0
    for run in range(first.size):
        shift = offsets[run] - indptr[first[run]]
        for row in range(first[run], last[run]):
            starts[position] = indptr[row] + shift
            position += 1
    starts[position] = offsets[-1]
    return starts
