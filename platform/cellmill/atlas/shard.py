"""Reading a shard: its columns' tokens, and runs of its rows."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from cellmill.atlas.entry import ShardEntry
from cellmill.atlas.jit import compiled
from cellmill.atlas.layout import CHUNK, entries_per_file, n_files
from cellmill.atlas.pipeline import fast_codecs
from cellmill.errors import CellmillError, IntegrityError
from cellmill.genes import N_SPECIALS
from cellmill.storage import Storage

I64 = npt.NDArray[np.int64]
_GAP = CHUNK // 2
"""Entries between two runs up to which reading on is cheaper than reading anew."""


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
        try:
            with fast_codecs(storage.is_local):
                import zarr

                root: Any = zarr.open_group(storage.zarr_store(entry.shard_path, read_only=True), mode="r")
                self._root = root
                self._indices: Any = root["X/indices"]
                self._data: Any = root["X/data"]
                self.indptr: npt.NDArray[np.int64] = root["X/indptr"][:]
                self.tokens: npt.NDArray[np.uint32] = root["var/token"][:].astype(np.uint32, copy=False)
        except CellmillError:
            raise
        except Exception as error:
            raise self._damaged(error) from error
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
        self._files_are_there(begin, end)
        offsets = np.concatenate([[0], np.cumsum(end - begin)])
        try:
            columns = self._read(self._indices, begin, end, offsets)
            counts = self._read(self._data, begin, end, offsets)
        except Exception as error:
            raise self._damaged(error) from error
        if not counts.all():
            raise self._damaged(ValueError("a stored count is zero"))
        return columns, counts, _row_starts(self.indptr, first, last, offsets)

    def _read(self, array: Any, begin: I64, end: I64, offsets: I64) -> npt.NDArray[Any]:
        """Return pieces of an array one after the other; pieces that share a chunk are decoded together."""
        out = np.empty(int(offsets[-1]), dtype=array.dtype)
        apart = np.flatnonzero((begin[1:] < end[:-1]) | (begin[1:] - end[:-1] > _GAP)) + 1
        bounds = [0, *apart.tolist(), begin.size] if begin.size else []
        for i, j in pairwise(bounds):
            low, high = int(begin[i]), int(end[j - 1])
            if high == low:
                continue
            span = array[low:high]
            if j - i == 1:
                out[offsets[i] : offsets[j]] = span
            else:
                _copy_pieces(span, begin[i:j] - low, end[i:j] - low, out[offsets[i] : offsets[j]])
        return out

    def _check(self) -> None:
        entry = self.entry
        shapes = (self.n_rows, self.tokens.size, self._indices.shape[0], self._data.shape[0])
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
        self._files_are_there(np.zeros(1, np.int64), np.full(1, entry.nnz))

    def _files_are_there(self, begin: npt.NDArray[np.int64], end: npt.NDArray[np.int64]) -> None:
        """Refuse a shard with a file gone: zarr would read it as zeros."""
        if not self._storage.is_local:
            return
        length = entries_per_file(self.entry.nnz)
        touched = {
            number
            for start, stop in zip((begin // length).tolist(), (-(-end // length)).tolist(), strict=True)
            for number in range(start, min(stop, n_files(self.entry.nnz)))
        }
        for number in touched:
            for name in ("indices", "data"):
                path = self._storage.local_path(f"{self.entry.shard_path}/X/{name}/c/{number}")
                if not path.is_file():
                    raise IntegrityError("A file of the shard is missing.", where=str(path))

    def _text(self, name: str) -> Any:
        try:
            return self._root[name][:]
        except Exception as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> IntegrityError:
        return IntegrityError(
            f"The shard cannot be read: {str(error).strip() or type(error).__name__}.",
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
