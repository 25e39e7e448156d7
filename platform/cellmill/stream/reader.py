"""Gathering rows from shards into a block of cells."""

from __future__ import annotations

import threading
from collections import OrderedDict
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from cellmill.atlas import Shard, ShardEntry, open_shard
from cellmill.storage import Storage
from cellmill.stream.cells import Reading
from cellmill.tokens import CellBlock

_OPEN_BYTES = 256 << 20
"""Row starts and tokens of open shards that a process keeps."""


class OpenShards:
    """Shards that this process has open, the least recently used closed first; they are immutable."""

    def __init__(self, limit: int = _OPEN_BYTES) -> None:
        self._limit = limit
        self._bytes = 0
        self._open: OrderedDict[tuple[str, str], Shard] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, storage: Storage, entry: ShardEntry) -> Shard:
        """Return a shard, opened if it is not.

        Raises
        ------
        IntegrityError
            It is missing or damaged.
        """
        key = (storage.url, entry.shard_path)
        with self._lock:
            if key in self._open:
                self._open.move_to_end(key)
                return self._open[key]
        shard = open_shard(storage, entry)
        with self._lock:
            if key not in self._open:
                self._open[key] = shard
                self._bytes += _size(shard)
            while self._bytes > self._limit and len(self._open) > 1:
                _, old = self._open.popitem(last=False)
                self._bytes -= _size(old)
        return shard


_SHARDS = OpenShards()


def read_block(reading: Reading) -> CellBlock:
    """Read rows of shards as one block of cells, in tokens.

    Raises
    ------
    IntegrityError
        A shard is missing or damaged; the message names it.
    """
    parts: list[tuple[npt.NDArray[np.uint32], npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[np.int64]]] = []
    for runs in reading.shards:
        shard = _SHARDS.get(reading.storage, runs.entry)
        parts.append((shard.tokens, *shard.gather(runs.starts, runs.stops)))
    sizes = [columns.size for _, columns, _, _ in parts]
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    # The smallest type that holds every token of the vocabulary, the same in each group.
    wide = max(runs.entry.vocabulary_size for runs in reading.shards) > 1 << 16
    token = np.empty(int(offsets[-1]), dtype=np.uint32 if wide else np.uint16)
    count = np.empty(int(offsets[-1]), dtype=np.result_type(*(counts.dtype for _, _, counts, _ in parts)))
    for (start, stop), (tokens, columns, counts, _) in zip(pairwise(offsets.tolist()), parts, strict=True):
        np.take(tokens.astype(token.dtype), columns, out=token[start:stop], mode="clip")
        count[start:stop] = counts
    indptr = np.concatenate([[0], *(starts[1:] + offset for (*_, starts), offset in zip(parts, offsets, strict=False))])
    rows = [starts.size - 1 for *_, starts in parts]
    return CellBlock(
        token=token,
        count=count,
        indptr=indptr.astype(np.int64),
        cell_id=reading.cell_id,
        labels=reading.labels,
        measured=tuple(tokens for tokens, *_ in parts),
        measured_set=np.repeat(np.arange(len(parts), dtype=np.int32), rows),
    )


def _size(shard: Shard) -> int:
    return int(shard.indptr.nbytes + shard.tokens.nbytes)
