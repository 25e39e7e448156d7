"""Gathering rows from shards into a block of cells."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cellmill.atlas import ShardEntry, open_shard
from cellmill.atlas.chunks import Emit
from cellmill.atlas.jit import compiled
from cellmill.atlas.measured import read_measured
from cellmill.errors import IntegrityError
from cellmill.memory import Memory
from cellmill.storage import Storage
from cellmill.stream.cells import Reading, RowRuns, ranges
from cellmill.stream.damage import Damage, read_what_can_be
from cellmill.stream.kept import Kept
from cellmill.tokens import CellBlock

I64 = npt.NDArray[np.int64]
U32 = npt.NDArray[np.uint32]

_OPEN_BYTES = 256 << 20
"""Row starts and tokens of open shards that a process keeps."""


class OpenShard:
    """A shard that is open: where its rows begin, what its columns are, and its entries."""

    def __init__(self, storage: Storage, entry: ShardEntry) -> None:
        self.storage = storage
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
        own = storage.holding(entry.checksum)
        try:
            return OpenShard(own, entry)
        except IntegrityError:
            with _anew(own) as past:
                OpenShard(past, entry)
            return OpenShard(own, entry)

    return _SHARDS.get((storage.url, entry.shard_path), make)


@contextmanager
def _anew(storage: Storage) -> Iterator[Storage]:
    """Give the storage of a shard that seems damaged, to read it once more without what is kept of it.

    What is wrong may be a copy, or have come about on the way. If it is the shard, no copy is kept.
    """
    storage.forget()
    try:
        yield storage.anew()
    except IntegrityError:
        storage.forget()
        raise


def read_block(
    reading: Reading, cells: I64 | None = None, *, memory: Memory | None = None, damage: Damage | None = None
) -> CellBlock:
    """Read rows of shards as one block of cells, in tokens.

    Parameters
    ----------
    reading
        Which rows.
    cells : int64 [n], optional
        Which of them are wanted, in which order, perhaps several times; all as they are read by default. Each goes from
        the decoded chunk to its place in the block, without a stop on the way.
    memory
        Where the block's entries are to be; by default in new memory.
    damage
        If given, rows that are missing or damaged are noted here, and what the block has of them means nothing.

    Raises
    ------
    IntegrityError
        A shard is missing or damaged, and `damage` is not given; the message names it.
    """
    opened: dict[int, OpenShard] = {}
    rows = [runs.n_rows for runs in reading.shards]
    bounds = np.concatenate([[0], np.cumsum(rows, dtype=np.int64)])
    starts = np.zeros(bounds[-1] + 1, np.int64)
    for i, runs in enumerate(reading.shards):
        first, last = bounds[i : i + 2]
        with _noting(i, slice(first, last), damage):
            opened[i] = shard = _open(reading.storage, runs.entry)
            _row_ends(shard.indptr, runs.starts, runs.stops, starts[first], starts[first + 1 : last + 1])
        if i not in opened:
            starts[first + 1 : last + 1] = starts[first]
    chosen = np.arange(bounds[-1]) if cells is None else cells
    indptr = np.concatenate([[0], np.cumsum(np.diff(starts)[chosen])])
    place = np.full(bounds[-1], -1, np.int64)
    # Of a cell that is wanted several times, the last place counts here, and the others are copies of it.
    place[chosen] = indptr[:-1]
    again = np.flatnonzero(place[chosen] != indptr[:-1])
    # The smallest type that holds every token of the vocabulary, the same in each group.
    wide = max(runs.entry.vocabulary_size for runs in reading.shards) > 1 << 16
    kinds = [shard.arrays.counts.dtype for shard in opened.values()]
    memory = memory or Memory()
    token = memory.empty(int(indptr[-1]), np.uint32 if wide else np.uint16)
    count = memory.empty(token.size, np.result_type(np.uint8, *kinds))
    for i, shard in opened.items():
        runs = reading.shards[i]
        begin, end = shard.indptr[runs.starts], shard.indptr[runs.stops]
        first, last = bounds[i : i + 2]
        places = _Places(starts[first : last + 1] - starts[first], place[first:last])
        with _noting(i, slice(first, last), damage):
            try:
                _read(shard, begin, end, places, token, count)
            except IntegrityError:
                _SHARDS.drop((reading.storage.url, runs.entry.shard_path))
                _read_again(i, shard, runs, places, token, count, slice(first, last), damage)
    for out in (token, count) if again.size else ():
        _repeat(out, place[chosen[again]], indptr[again], indptr[again + 1])
    return CellBlock(
        token=token,
        count=count,
        indptr=indptr,
        cell_id=reading.cell_id[chosen],
        labels={name: codes[chosen] for name, codes in reading.labels.items()},
        measured=tuple(tokens for shard in opened.values() for tokens in shard.measured.sets),
        measured_set=_measured_sets(opened, reading)[chosen],
    )


def _measured_sets(opened: dict[int, OpenShard], reading: Reading) -> npt.NDArray[np.int32]:
    """Return the set of each row that was read, counted over the sets of all shards: int32 [n]."""
    found = []
    first = 0
    for i, runs in enumerate(reading.shards):
        of_row = opened[i].measured.of_row if i in opened else None
        rows = ranges(runs.starts, runs.stops - runs.starts)
        own = np.zeros(rows.size, np.int32) if of_row is None else of_row[rows]
        found.append(own + np.int32(first))
        first += len(opened[i].measured.sets) if i in opened else 0
    return np.concatenate(found)


@contextmanager
def _noting(shard: int, rows: slice, damage: Damage | None) -> Iterator[None]:
    """Note that none of a shard's rows can be read instead of raising it, if there is a place to note it."""
    try:
        yield
    except IntegrityError as error:
        if damage is None:
            raise
        damage.lost[rows] = True
        damage.reasons[shard] = error


class _Places(NamedTuple):
    """Where the rows that are read of a shard go.

    Attributes
    ----------
    starts : int64 [rows + 1]
        Where each row begins among the entries in the order in which they are read.
    to : int64 [rows]
        Where it begins in the block, -1 for nowhere.
    """

    starts: I64
    to: I64


def _read(
    shard: OpenShard, begin: I64, end: I64, places: _Places, token: npt.NDArray[Any], count: npt.NDArray[Any]
) -> None:
    def to(out: npt.NDArray[Any]) -> Emit:
        return lambda values, place: _put(values, place.start, *places, out)

    if shard.arrays.entry_tokens is not None:
        shard.arrays.entry_tokens.read(begin, end, to(token))
        shard.arrays.counts.read(begin, end, to(count))
        return
    tokens = shard.tokens.astype(token.dtype)

    def look_up(columns: npt.NDArray[Any], place: slice) -> None:
        _put_tokens(tokens, columns, place.start, *places, token)

    shard.arrays.read(begin, end, look_up, to(count))


def _read_again(
    number: int,
    shard: OpenShard,
    runs: RowRuns,
    places: _Places,
    token: npt.NDArray[Any],
    count: npt.NDArray[Any],
    own: slice,
    damage: Damage | None,
) -> None:
    """Read what could not be read once more, without what is kept of it; note rows that cannot be read, or raise."""
    rows = ranges(runs.starts, runs.stops - runs.starts)
    begin, end = shard.indptr[rows], shard.indptr[rows + 1]
    with _anew(shard.storage) as past:
        anew = OpenShard(past, runs.entry)

        def read(some: I64) -> None:
            starts = np.concatenate([[0], np.cumsum(end[some] - begin[some])])
            _read(anew, begin[some], end[some], _Places(starts, places.to[some]), token, count)

        if damage is None:
            read(np.arange(rows.size))
            return
        lost, reason = read_what_can_be(read, begin, end)
        if reason is not None:
            past.forget()
            damage.lost[own] = lost
            damage.reasons[number] = reason


@compiled
def _put(values: npt.NDArray[Any], first: int, starts: I64, to: I64, out: npt.NDArray[Any]) -> None:
    """Write entries, the first of which is number `first` of those that are read, to where their rows go."""
    row, at = np.searchsorted(starts, first, side="right") - 1, 0
    while at < values.size:
        within = first + at - starts[row]
        n = min(starts[row + 1] - starts[row] - within, values.size - at)
        if to[row] >= 0:
            # Views, because an index that could be negative costs a test for each element.
            source, target = values[at : at + n], out[to[row] + within : to[row] + within + n]
            for j in range(n):
                target[j] = source[j]
        at += n
        row += 1


@compiled
def _put_tokens(
    tokens: npt.NDArray[Any], columns: npt.NDArray[Any], first: int, starts: I64, to: I64, out: npt.NDArray[Any]
) -> None:
    """Write the tokens of entries' columns; see `_put`."""
    row, at = np.searchsorted(starts, first, side="right") - 1, 0
    while at < columns.size:
        within = first + at - starts[row]
        n = min(starts[row + 1] - starts[row] - within, columns.size - at)
        if to[row] >= 0:
            source, target = columns[at : at + n], out[to[row] + within : to[row] + within + n]
            for j in range(n):
                target[j] = tokens[source[j]]
        at += n
        row += 1


@compiled
def _repeat(out: npt.NDArray[Any], source: I64, begin: I64, end: I64) -> None:
    """Fill ranges with what is elsewhere in the same array."""
    for i in range(source.size):
        for j in range(end[i] - begin[i]):
            out[begin[i] + j] = out[source[i] + j]


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
