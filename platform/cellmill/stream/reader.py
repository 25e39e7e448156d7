"""Gathering rows from shards into a block of cells."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cellmill.atlas import ShardEntry, open_shard
from cellmill.atlas.chunks import ChunkedArray, Emit, Rows
from cellmill.atlas.decoding import NOWHERE, copy_places, place, place_tokens
from cellmill.atlas.measured import read_measured
from cellmill.errors import IntegrityError
from cellmill.memory import Memory
from cellmill.storage import Storage
from cellmill.stream.cells import Reading, ranges
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


class OpenReading:
    """Rows of shards that are open: how long they are is known, and they can be read to wherever they are wanted.

    Parameters
    ----------
    reading
        Which rows.
    damage
        If given, rows that are missing or damaged are noted here; those of a shard that cannot be opened have no
        entries, and what is read of the others means nothing.

    Attributes
    ----------
    lengths : int64 [rows]
        Entries of each row, in the order in which they are read.
    token_dtype
        The smallest type that holds every token of the vocabulary.
    count_dtype
        The smallest type that holds every count of the shards.

    Raises
    ------
    IntegrityError
        A shard is missing or damaged, and `damage` is not given; the message names it.
    """

    def __init__(self, reading: Reading, damage: Damage | None = None) -> None:
        self.reading, self._damage = reading, damage
        self._shards: dict[int, OpenShard] = {}
        self._rows = [ranges(runs.starts, runs.stops - runs.starts) for runs in reading.shards]
        self._bounds = np.concatenate([[0], np.cumsum([rows.size for rows in self._rows], dtype=np.int64)])
        self.lengths = np.zeros(self._bounds[-1], np.int64)
        for i, runs in enumerate(reading.shards):
            own, rows = slice(*self._bounds[i : i + 2].tolist()), self._rows[i]
            with _noting(i, own, damage):
                self._shards[i] = shard = _open(reading.storage, runs.entry)
                self.lengths[own] = shard.indptr[rows + 1] - shard.indptr[rows]
        wide = max(runs.entry.vocabulary_size for runs in reading.shards) > 1 << 16
        self.token_dtype = np.dtype(np.uint32 if wide else np.uint16)
        kinds = [shard.arrays.counts.dtype for shard in self._shards.values()]
        self.count_dtype: np.dtype[Any] = np.result_type(np.uint8, *kinds)

    def read(self, cells: I64, token: Places, count: Places) -> None:
        """Read the entries of cells.

        Parameters
        ----------
        cells : int64 [n]
            Which rows, counted in the order in which they are read, perhaps several times.
        token, count
            Where they are to be, each with `n` addresses.

        Raises
        ------
        IntegrityError
            A shard is missing or damaged, and there is no `damage`.
        """
        # Of a cell that is wanted several times, the last place counts here, and the others are copies of it.
        tos = [np.full(self._bounds[-1], NOWHERE, np.int64) for _ in range(2)]
        for to, some in zip(tos, (token, count), strict=True):
            to[cells] = some.to
        for i, shard in self._shards.items():
            own = slice(*self._bounds[i : i + 2].tolist())
            runs, rows = self.reading.shards[i], self._rows[i]
            places = [some._replace(to=to[own]) for some, to in zip((token, count), tos, strict=True)]
            with _noting(i, own, self._damage):
                try:
                    first, last = shard.indptr[runs.starts], shard.indptr[runs.stops]
                    _read(shard, first, last, shard.indptr[rows], shard.indptr[rows + 1], *places)
                except IntegrityError:
                    _SHARDS.drop((self.reading.storage.url, runs.entry.shard_path))
                    self._read_again(i, *places)
        again = np.flatnonzero(tos[0][cells] != token.to)
        for to, some in zip(tos, (token, count), strict=True) if again.size else ():
            copy_places(to[cells[again]], some.to[again], self.lengths[cells[again]], some.like)

    def _read_again(self, number: int, token: Places, count: Places) -> None:
        """Read a shard once more, without what is kept of it; note rows that cannot be read, or raise."""
        shard, rows, damage = self._shards[number], self._rows[number], self._damage
        begin, end = shard.indptr[rows], shard.indptr[rows + 1]
        with _anew(shard.storage) as past:
            anew = OpenShard(past, self.reading.shards[number].entry)

            def read(some: I64) -> None:
                own = begin[some], end[some]
                places = (places._replace(to=places.to[some]) for places in (token, count))
                _read(anew, *own, *own, *places)

            if damage is None:
                read(np.arange(rows.size))
                return
            lost, reason = read_what_can_be(read, begin, end)
            if reason is not None:
                past.forget()
                damage.lost[self._bounds[number] : self._bounds[number + 1]] = lost
                damage.reasons[number] = reason

    def measured(self, cells: I64) -> tuple[tuple[U32, ...], npt.NDArray[np.int32]]:
        """Return the sets of tokens that were measured, and which of them each cell has: int32 [n]."""
        sets: list[U32] = []
        found = np.zeros(self._bounds[-1], np.int32)
        for i, shard in self._shards.items():
            own = found[self._bounds[i] : self._bounds[i + 1]]
            own[:] = len(sets)
            if shard.measured.of_row is not None:
                own += shard.measured.of_row[self._rows[i]]
            sets += shard.measured.sets
        return tuple(sets), found[cells]


class Places(NamedTuple):
    """Where something of the entries of rows is to be.

    Attributes
    ----------
    to : int64 [rows]
        Address of the first entry of each row.
    like
        An array of the type in which entries are to be written.
    """

    to: I64
    like: npt.NDArray[Any]


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
    opened = OpenReading(reading, damage)
    chosen = np.arange(opened.lengths.size) if cells is None else cells
    indptr = np.concatenate([[0], np.cumsum(opened.lengths[chosen])])
    memory = memory or Memory()
    token, count = (memory.empty(int(indptr[-1]), kind) for kind in (opened.token_dtype, opened.count_dtype))
    opened.read(chosen, *(Places(array.ctypes.data + indptr[:-1] * array.itemsize, array) for array in (token, count)))
    measured, measured_set = opened.measured(chosen)
    return CellBlock(
        token=token,
        count=count,
        indptr=indptr,
        cell_id=reading.cell_id[chosen],
        labels={name: codes[chosen] for name, codes in reading.labels.items()},
        measured=measured,
        measured_set=measured_set,
    )


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


def _read(shard: OpenShard, first: I64, last: I64, begin: I64, end: I64, token: Places, count: Places) -> None:
    """Read pieces of a shard, and write the rows that they consist of to where these go."""
    arrays = shard.arrays
    tokens = shard.tokens.astype(token.like.dtype)
    if isinstance(arrays.columns, ChunkedArray) and isinstance(arrays.counts, ChunkedArray):
        arrays.columns.place(first, last, Rows(begin, end, *token), tokens)
        arrays.counts.place(first, last, Rows(begin, end, *count), tokens[:0])
        return
    # Others tell the place of entries among all that are read.
    end = np.cumsum(end - begin)
    begin = np.concatenate([[0], end[:-1]])

    def to(places: Places) -> Emit:
        return lambda entries, at: place(entries, at.start, begin, end, *places)

    if arrays.entry_tokens is not None:
        arrays.entry_tokens.read(first, last, to(token))
        arrays.counts.read(first, last, to(count))
        return
    arrays.read(first, last, lambda part, at: place_tokens(tokens, part, at.start, begin, end, *token), to(count))
