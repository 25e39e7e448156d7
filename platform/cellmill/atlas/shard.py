"""Reading a shard: its columns' tokens, and runs of its rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cellmill.atlas.chunks import ChunkedArray
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
    """

    def __init__(self, storage: Storage, entry: ShardEntry) -> None:
        self.entry = entry
        self._storage = storage
        self._where = storage.join(entry.shard_path)
        self._indices = ChunkedArray(storage, f"{entry.shard_path}/X/indices")
        self._data = ChunkedArray(storage, f"{entry.shard_path}/X/data")
        self.indptr: npt.NDArray[np.int64] = _whole(ChunkedArray(storage, f"{entry.shard_path}/X/indptr"))
        self.tokens: npt.NDArray[np.uint32] = _whole(ChunkedArray(storage, f"{entry.shard_path}/var/token"))
        self._check()

    @property
    def n_rows(self) -> int:
        """Number of rows, also of those that a snapshot hides."""
        return self.indptr.size - 1

    @property
    def feature_ids(self) -> list[str]:
        """Feature id of each column."""
        return [str(name) for name in self._text("var/feature_id")]

    @property
    def symbols(self) -> list[str]:
        """Symbol of each column."""
        return [str(name) for name in self._text("var/symbol")]

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
        columns, counts = (_pieces(array, begin, end, offsets) for array in (self._indices, self._data))
        return columns, counts, _row_starts(self.indptr, first, last, offsets)

    def _check(self) -> None:
        entry = self.entry
        shapes = (self.n_rows, self.tokens.size, self._indices.length, self._data.length)
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

    def _text(self, name: str) -> Any:
        import zarr

        try:
            root: Any = zarr.open_group(self._storage.zarr_store(self.entry.shard_path, read_only=True), mode="r")
            return root[name][:]
        except Exception as error:
            raise IntegrityError(
                f"The shard cannot be read: {str(error).strip() or type(error).__name__}.",
                where=self._where,
                fix="`cellmill atlas verify` lists what is damaged; restore it from a copy, or ingest again.",
            ) from error


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
    return _whole(ChunkedArray(storage, f"{entry.shard_path}/var/token"))


def _whole(array: ChunkedArray) -> npt.NDArray[Any]:
    zero, end = np.zeros(1, np.int64), np.full(1, array.length)
    return _read(array, zero, end)


def _pieces(array: ChunkedArray, begin: I64, end: I64, offsets: I64) -> npt.NDArray[Any]:
    """Return pieces of an array one after the other, in any order, overlapping or not."""
    if np.all(begin[1:] >= end[:-1]):
        return _read(array, begin, end)
    # Each chunk is decoded once: what overlaps is read as one span, and copied to where it is wanted.
    order = np.argsort(begin, kind="stable")
    low, reach = begin[order], np.maximum.accumulate(end[order])
    first = np.concatenate([[True], low[1:] > reach[:-1]])
    span_low, span_high = low[first], reach[np.concatenate([np.flatnonzero(first)[1:] - 1, [low.size - 1]])]
    buffer = _read(array, span_low, span_high)
    starts = np.concatenate([[0], np.cumsum(span_high - span_low)])
    span = np.searchsorted(span_low, begin, side="right") - 1
    at = starts[span] + begin - span_low[span]
    out = np.empty(int(offsets[-1]), dtype=array.dtype)
    _copy_pieces(buffer, at, at + end - begin, out)
    return out


def _read(array: ChunkedArray, begin: I64, end: I64) -> npt.NDArray[Any]:
    """Return pieces that are ascending and apart, one after the other."""
    out = np.empty(int((end - begin).sum()), dtype=array.dtype)

    def place(part: npt.NDArray[Any], where: slice) -> None:
        out[where] = part

    array.read(begin, end, place)
    return out


@compiled
def _copy_pieces(source: npt.NDArray[Any], begin: I64, end: I64, out: npt.NDArray[Any]) -> None:
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
