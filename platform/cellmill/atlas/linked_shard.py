"""Reading a shard whose counts are in an AnnData zarr store of somebody else.

What is read is moved from columns to features as an ingestion does it, and each cell is compared with the content hash
that it had when the store was linked: other counts are never handed on.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cellmill.atlas.cells import CellsFile
from cellmill.atlas.chunks import Emit
from cellmill.atlas.column_sums import FINE, move_to_features
from cellmill.atlas.content import content_hash, hash_bytes
from cellmill.atlas.entry import ShardEntry
from cellmill.atlas.files import list_files
from cellmill.atlas.layout import count_dtype, index_dtype
from cellmill.atlas.link import read_link, stamp_of
from cellmill.atlas.store_vector import open_vectors
from cellmill.errors import IntegrityError, SourceError
from cellmill.storage import Storage

I64 = npt.NDArray[np.int64]

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
        The link or the cells' metadata is damaged, or the store is not there or not as it was linked.
    """

    def __init__(self, storage: Storage, entry: ShardEntry) -> None:
        self._entry = entry
        self._link = link = read_link(storage, entry)
        table = CellsFile(storage, entry).read(["source_row", "n_genes", "content_hash"])
        self._rows: I64 = table["source_row"].to_numpy().astype(np.int64)
        lengths = table["n_genes"].to_numpy()
        self.indptr: I64 = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        # All values have 16 bytes, one after the other.
        hashes = table["content_hash"].combine_chunks()
        self._hashes = np.frombuffer(hashes.buffers()[-1], np.uint8).reshape(-1, 16)[hashes.offset :][: entry.n_rows]
        self.tokens = link.tokens
        store = storage.beside(link.location, link.stamp)
        try:
            files = list(list_files(store, link.matrix))
            if stamp_of(files) != link.stamp:
                raise self._changed("Its files are not those that were linked.")
            indptr, self._indices, self._values = open_vectors(
                store, link.matrix, ("indptr", "indices", "data"), {file.key for file in files}
            )
            first, last = int(self._rows.min(initial=0)), int(self._rows.max(initial=-1))
            starts = indptr.read(first, last + 2).astype(np.int64)
        except SourceError as error:
            raise self._changed(error.what) from error
        if starts.size != last + 2 - first or np.any(np.diff(starts) < 0):
            raise self._changed("Its rows are not those that were linked.")
        self._begin, self._end = starts[self._rows - first], starts[self._rows - first + 1]
        self._kept = threading.local()
        self.columns = _Part(self, 0, index_dtype(link.tokens.size))
        self.counts = _Part(self, 1, count_dtype(link.largest))

    def entries(self, begin: I64, end: I64) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Return features and counts of pieces that are ascending and apart.

        Features are asked for and then the counts beside them, so the last answer is kept, by each thread.
        """
        asked = begin.tobytes() + end.tobytes()
        kept = getattr(self._kept, "answer", None)
        if kept is not None and kept[0] == asked:
            self._kept.answer = None
            return kept[1], kept[2]
        first = np.searchsorted(self.indptr, begin, side="right") - 1
        last = np.searchsorted(self.indptr, end, side="left")
        wanted = np.unique(np.concatenate([np.arange(a, b) for a, b in zip(first, last, strict=True)]).astype(np.int64))
        features, counts = self._harmonised(wanted)
        starts = np.concatenate([[0], np.cumsum(np.diff(self.indptr)[wanted])])
        at = starts[np.searchsorted(wanted, first)] + begin - self.indptr[first]
        if int((end - begin).sum()) != features.size:  # parts of rows
            pieces = [slice(a, a + n) for a, n in zip(at.tolist(), (end - begin).tolist(), strict=True)]
            features, counts = (np.concatenate([part[piece] for piece in pieces]) for part in (features, counts))
        self._kept.answer = (asked, features, counts)
        return features, counts

    def _harmonised(self, rows: I64) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Read ascending rows of the shard, and return their features and counts."""
        link, begin, end = self._link, self._begin[rows], self._end[rows]
        try:
            columns, values = self._indices.pieces(begin, end), _native(self._values.pieces(begin, end))
        except SourceError as error:
            raise self._changed(error.what) from error
        starts = np.concatenate([[0], np.cumsum(end - begin)])
        if columns.size != starts[-1] or values.size != starts[-1]:
            raise self._changed("It ends before it should.")
        if columns.size and (int(columns.min()) < 0 or int(columns.max()) >= link.target.size):
            raise self._changed("It names columns that are not there.")
        features = np.empty(values.size + 1, self.columns.dtype)
        kind = np.uint16 if link.largest < 1 << 16 else np.uint32
        counts = np.empty(values.size + 1, kind)
        indptr = np.zeros(rows.size + 1, np.int64)
        umis = np.zeros(link.target.size)
        limit = int(np.iinfo(kind).max)
        state = move_to_features(starts, columns, values, link.target, features, counts, indptr, umis, limit)
        n = int(indptr[-1])
        features, counts = features[:n], counts[:n].astype(self.counts.dtype, copy=False)
        counts[link.binary[features]] = 1
        same = state == FINE and np.array_equal(np.diff(indptr), np.diff(self.indptr)[rows])
        if not same or not np.array_equal(
            hash_bytes(content_hash(indptr, features, counts, link.keys)), self._hashes[rows]
        ):
            raise self._changed("Its counts are not those that were linked.")
        return features, counts

    def _changed(self, what: str) -> IntegrityError:
        entry = self._entry
        return IntegrityError(
            f"The store of shard {entry.dataset}/{entry.digest} was changed or damaged since it was linked. {what}",
            where=f"{self._link.location}: {self._link.matrix}",
            fix=_FIX,
        )


@dataclass(frozen=True)
class _Part:
    """The features or the counts as an array of entries."""

    shard: LinkedShard
    which: int
    dtype: np.dtype[Any]

    @property
    def length(self) -> int:
        return int(self.shard.indptr[-1])

    def read(self, begin: I64, end: I64, emit: Emit) -> None:
        wanted = end > begin
        if wanted.any():
            part = self.shard.entries(begin[wanted], end[wanted])[self.which]
            emit(part, slice(0, part.size))


def _native(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if values.dtype == bool:
        return values.view(np.uint8)
    return values.astype(np.float32) if values.dtype == np.float16 else values
