"""The arrays of a shard, however it lies on disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cellmill.atlas.arrow_shard import ArrowShard
from cellmill.atlas.chunks import ChunkedArray, Emit
from cellmill.atlas.entry import ShardEntry
from cellmill.atlas.layout import index_dtype
from cellmill.atlas.link import read_link
from cellmill.atlas.linked_shard import LinkedShard
from cellmill.storage import Storage

I64 = npt.NDArray[np.int64]


class EntryArray(Protocol):
    """Something of every entry of a shard, read in pieces."""

    @property
    def length(self) -> int:
        """Number of entries."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of each."""
        ...

    def read(self, begin: I64, end: I64, emit: Emit) -> None:
        """Read pieces that are ascending and apart, one after the other; see `ChunkedArray.read`."""
        ...


@dataclass(frozen=True)
class ShardArrays:
    """What a shard consists of.

    Attributes
    ----------
    indptr : int64 [n_rows + 1]
        Where rows begin.
    tokens : uint32 [n_features]
        Token of each column.
    columns, counts
        Column and count of each entry.
    entry_tokens
        Token of each entry, where these are stored.
    linked
        What reads columns and counts together, where that is one work.
    """

    indptr: I64
    tokens: npt.NDArray[np.uint32]
    columns: EntryArray
    counts: EntryArray
    entry_tokens: EntryArray | None
    linked: LinkedShard | None = None

    def read(self, begin: I64, end: I64, columns: Emit, counts: Emit) -> None:
        """Read columns and counts of pieces, whole rows each, ascending and apart; see `EntryArray.read`."""
        if self.linked is not None:
            self.linked.read(begin, end, columns, counts)
            return
        self.columns.read(begin, end, columns)
        self.counts.read(begin, end, counts)

    def pieces(self, begin: I64, end: I64) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Return columns and counts of pieces as `read` has them, one after the other."""
        n = int((end - begin).sum())
        columns, counts = np.empty(n, self.columns.dtype), np.empty(n, self.counts.dtype)
        self.read(begin, end, into(columns), into(counts))
        return columns, counts


class _ColumnsOfTokens:
    """The columns of entries whose tokens are stored."""

    def __init__(self, entry_tokens: EntryArray, tokens: npt.NDArray[np.uint32]) -> None:
        self._array = entry_tokens
        self.length = entry_tokens.length
        self.dtype = index_dtype(tokens.size)
        self._column = np.zeros(int(tokens.max(initial=0)) + 1, self.dtype)
        self._column[tokens] = np.arange(tokens.size)

    def read(self, begin: I64, end: I64, emit: Emit) -> None:
        self._array.read(begin, end, lambda part, place: emit(self._column[part], place))


def open_arrays(storage: Storage, entry: ShardEntry) -> ShardArrays:
    """Open the arrays of a shard; row starts and tokens are loaded.

    Raises
    ------
    IntegrityError
        A file is missing or damaged.
    """
    if entry.layout == "arrow":
        shard = ArrowShard(storage, entry)
        columns = _ColumnsOfTokens(shard.genes, shard.tokens)
        return ShardArrays(shard.indptr, shard.tokens, columns, shard.counts, shard.genes)
    if entry.layout == "anndata":
        linked = LinkedShard(storage, entry)
        return ShardArrays(linked.indptr, linked.tokens, linked.columns, linked.counts, None, linked)
    arrays = [ChunkedArray(storage, f"{entry.shard_path}/X/{name}") for name in ("indptr", "indices", "data")]
    return ShardArrays(read_whole(arrays[0]), load_tokens(storage, entry), arrays[1], arrays[2], None)


def load_tokens(storage: Storage, entry: ShardEntry) -> npt.NDArray[np.uint32]:
    """Return the token of each column of a shard, uint32 [n_features], without opening more than needed."""
    if entry.layout == "arrow":
        return ArrowShard(storage, entry).tokens
    if entry.layout == "anndata":
        return read_link(storage, entry).tokens
    return read_whole(ChunkedArray(storage, f"{entry.shard_path}/var/token"))


def read_whole(array: EntryArray) -> npt.NDArray[Any]:
    """Return all entries."""
    out = np.empty(array.length, array.dtype)
    array.read(np.zeros(1, np.int64), np.full(1, array.length), into(out))
    return out


def into(out: npt.NDArray[Any]) -> Emit:
    """Return what writes all that is read to an array."""

    def place(part: npt.NDArray[Any], where: slice) -> None:
        out[where] = part

    return place
