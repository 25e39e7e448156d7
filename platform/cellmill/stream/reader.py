"""Gathering rows from shards into a block of cells."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from cellmill.atlas import ShardEntry, open_shard
from cellmill.atlas.arrays import into
from cellmill.atlas.jit import compiled
from cellmill.atlas.measured import Measured, read_measured
from cellmill.errors import IntegrityError
from cellmill.storage import Storage
from cellmill.stream.cells import Reading, RowRuns, ranges
from cellmill.stream.kept import Kept
from cellmill.tokens import CellBlock

I64 = npt.NDArray[np.int64]
U32 = npt.NDArray[np.uint32]

_OPEN_BYTES = 256 << 20
"""Row starts and tokens of open shards that a process keeps."""


class OpenShard:
    """A shard that is open: where its rows begin, what its columns are, and its entries."""

    def __init__(self, storage: Storage, entry: ShardEntry) -> None:
        shard = open_shard(storage, entry)
        self.indptr = shard.indptr
        self.tokens = shard.tokens
        self.arrays = shard.arrays
        self.measured = read_measured(storage, entry, shard.tokens)

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return self.indptr.nbytes + self.tokens.nbytes + self.measured.nbytes


_SHARDS: Kept[tuple[str, str], OpenShard] = Kept(_OPEN_BYTES)
"""Shards that this process has open."""


def _open(storage: Storage, entry: ShardEntry) -> OpenShard:
    def make() -> OpenShard:
        return OpenShard(storage.beside(storage.url, entry.checksum), entry)

    return _SHARDS.get((storage.url, entry.shard_path), make)


class Buffers:
    """Memory that blocks are read into, again and again: new pages cost about as much as what is read into them."""

    def __init__(self) -> None:
        self._kept: dict[str, npt.NDArray[np.uint8]] = {}

    def array(self, name: str, size: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Return an array that is valid until the next one of the same name is asked for."""
        nbytes = size * np.dtype(dtype).itemsize
        if name not in self._kept or self._kept[name].nbytes < nbytes:
            self._kept[name] = np.empty(nbytes + nbytes // 8, np.uint8)
        return self._kept[name][:nbytes].view(dtype)


Damage = dict[int, IntegrityError]
"""Number of a reading's shard, and what is wrong with it."""


def read_block(reading: Reading, buffers: Buffers | None = None, damage: Damage | None = None) -> CellBlock:
    """Read rows of shards as one block of cells, in tokens.

    Parameters
    ----------
    reading
        Which rows.
    buffers
        Where to; the block is valid until the next is read into them. By default into memory of its own.
    damage
        If given, shards that are missing or damaged are noted here, and the block has no cells of them.

    Raises
    ------
    IntegrityError
        A shard is missing or damaged, and `damage` is not given; the message names it.
    """
    opened: dict[int, OpenShard] = {}
    sizes: dict[int, int] = {}
    for i, runs in enumerate(reading.shards):
        with _noting(i, damage):
            shard = _open(reading.storage, runs.entry)
            sizes[i] = int((shard.indptr[runs.stops] - shard.indptr[runs.starts]).sum())
            opened[i] = shard
    # The smallest type that holds every token of the vocabulary, the same in each group.
    wide = max(runs.entry.vocabulary_size for runs in reading.shards) > 1 << 16
    memory = buffers or Buffers()
    token = memory.array("token", sum(sizes.values()), np.uint32 if wide else np.uint16)
    kinds = [shard.arrays.counts.dtype for shard in opened.values()]
    count = memory.array("count", token.size, np.result_type(np.uint8, *kinds))
    rows = [runs.n_rows for runs in reading.shards]
    indptr = np.zeros(sum(rows) + 1, np.int64)
    whole: list[int] = []
    first = start = 0
    for i, shard in opened.items():
        runs, stop = reading.shards[i], start + sizes[i]
        with _noting(i, damage):
            begin, end = shard.indptr[runs.starts], shard.indptr[runs.stops]
            _read(shard, begin, end, token[start:stop], count[start:stop])
            _row_ends(shard.indptr, runs.starts, runs.stops, start, indptr[first + 1 : first + rows[i] + 1])
            whole.append(i)
            first, start = first + rows[i], stop
    kept = slice(None) if len(whole) == len(rows) else np.repeat(np.isin(np.arange(len(rows)), whole), rows)
    return CellBlock(
        token=token[:start],
        count=count[:start],
        indptr=indptr[: first + 1],
        cell_id=reading.cell_id[kept],
        labels={name: codes[kept] for name, codes in reading.labels.items()},
        measured=tuple(tokens for i in whole for tokens in opened[i].measured.sets),
        measured_set=_measured_sets([(opened[i].measured, reading.shards[i]) for i in whole]),
    )


def _measured_sets(shards: list[tuple[Measured, RowRuns]]) -> npt.NDArray[np.int32]:
    """Return the set of each row that was read, counted over the sets of all shards: int32 [n]."""
    found = [np.empty(0, np.int32)]
    first = 0
    for measured, runs in shards:
        if measured.of_row is None:
            own = np.zeros(runs.n_rows, np.int32)
        else:
            own = measured.of_row[ranges(runs.starts, runs.stops - runs.starts)]
        found.append(own + np.int32(first))
        first += len(measured.sets)
    return np.concatenate(found)


@contextmanager
def _noting(shard: int, damage: Damage | None) -> Iterator[None]:
    """Note what is wrong with a shard instead of raising it, if there is a place to note it."""
    try:
        yield
    except IntegrityError as error:
        if damage is None:
            raise
        damage[shard] = error


def _read(shard: OpenShard, begin: I64, end: I64, token: npt.NDArray[Any], count: npt.NDArray[Any]) -> None:
    if shard.arrays.entry_tokens is not None:
        shard.arrays.entry_tokens.read(begin, end, into(token))
        shard.arrays.counts.read(begin, end, into(count))
        return
    tokens = shard.tokens.astype(token.dtype)

    def emit(columns: npt.NDArray[Any], place: slice) -> None:
        _look_up(tokens, columns, token[place])

    shard.arrays.read(begin, end, emit, into(count))


@compiled
def _look_up(tokens: npt.NDArray[Any], columns: npt.NDArray[Any], out: npt.NDArray[Any]) -> None:
    for i in range(columns.size):
        out[i] = tokens[columns[i]]


@compiled
def _row_ends(indptr: I64, starts: I64, stops: I64, offset: int, out: I64) -> None:
    """Write where each row of the runs ends in their concatenation."""
    position = 0
    for run in range(starts.size):
        shift = offset - indptr[starts[run]]
        for row in range(starts[run], stops[run]):
            out[position] = indptr[row + 1] + shift
            position += 1
        offset = out[position - 1] if position else offset
