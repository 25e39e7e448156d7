"""Arrays of one dimension in anybody's zarr store, of formats 2 and 3, with any codec: decoded chunk by chunk."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from cellmill.atlas.store_codecs import chunk_format
from cellmill.errors import CellmillError, SourceError
from cellmill.storage import Storage

T = TypeVar("T")
_AHEAD = 16
"""Chunks of a remote store that are fetched side by side."""
_ABSENT = (1 << 64) - 1


class UnreadableChunkError(SourceError):
    """A chunk cannot be read or decoded.

    Parameters
    ----------
    what, where, fix
        As of every error.
    entries
        Its first entry, and one after its last.
    """

    def __init__(self, what: str, *, where: str = "", fix: str = "", entries: tuple[int, int] = (0, 0)) -> None:
        super().__init__(what, where=where, fix=fix)
        self.entries = entries


class StoreVector:
    """An array, opened.

    Parameters
    ----------
    store, path
        Where the array is.
    array
        The zarr array.
    keys
        All files of the array, and perhaps others.

    Attributes
    ----------
    length, dtype
        Of the array, in this machine's byte order; booleans are numbers, and half precision is single.
    """

    def __init__(self, store: Storage, path: str, array: Any, keys: Container[str]) -> None:
        self._store, self._path, self._array, self._keys = store, path, array, keys
        self._where = store.join(path)
        self._format = chunk_format(array)
        self._raw = array.dtype if self._format is None else self._format.dtype
        self._chunk = int(array.chunks[0])
        self._index: dict[str, npt.NDArray[np.uint64]] = {}
        self.length = int(array.shape[0])
        self.dtype = _native(np.empty(0, self._raw)).dtype

    def files(self, low: int, high: int) -> list[str]:
        """Return the keys of the files that are there for entries ``[low, high)``, and of what describes the array."""
        (size,) = self._array.shards or self._array.chunks
        numbers = range(low // size, -(-high // size)) if high > low else range(0)
        keys = [f"{self._path}/zarr.json", f"{self._path}/.zarray", *map(self._key, numbers)]
        return [key for key in keys if key in self._keys]

    def read(self, low: int, high: int) -> npt.NDArray[Any]:
        """Return entries ``[low, high)``; raises as `reading` and `Pass.take`."""
        out = np.empty(high - low, self.dtype)
        self.reading([(low, high)]).take(low, high, out)
        return out

    def reading(self, spans: Sequence[tuple[int, int]]) -> Pass:
        """Return a pass over spans of entries, which ascend and are apart; no chunk is decoded twice.

        Raises
        ------
        SourceError
            The array does not reach so far.
        """
        if spans and (spans[0][0] < 0 or spans[-1][1] > self.length):
            raise SourceError(f"{self._name} ends before it should.", where=self._where)
        size = self._chunk
        numbers = {number for low, high in spans if high > low for number in range(low // size, (high - 1) // size + 1)}
        return Pass(self._decoded(sorted(numbers)), size)

    def _decoded(self, numbers: list[int]) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """Yield chunks, decoded into one array that is used again for each."""
        how, size = self._format, self._chunk
        if how is None:
            for number in numbers:
                low, high = number * size, min((number + 1) * size, self.length)
                yield number, _native(self._attempt(lambda: np.asarray(self._array[low:high])))  # noqa: B023
            return
        entries = np.empty(size, self._raw)
        for number, content in self._contents(numbers):
            if content is None:
                entries[:] = self._array.metadata.fill_value or 0
            else:
                self._attempt(lambda: how.decode(content, entries))  # noqa: B023 - called at once
            yield number, _native(entries)

    def _contents(self, numbers: list[int]) -> Iterator[tuple[int, bytes | None]]:
        """Yield chunks as they are stored; None for one that is not, since all of it is alike."""
        assert self._format is not None
        if per_file := self._format.per_file:
            for file, mine in groupby(numbers, lambda number: number // per_file):
                yield from self._of_file(self._key(file), [number % per_file for number in mine], file * per_file)
            return
        if self._store.is_local or len(numbers) < 2:
            for number in numbers:
                yield number, self._whole(number)
            return
        with ThreadPoolExecutor(_AHEAD) as pool:
            for start in range(0, len(numbers), _AHEAD):
                some = numbers[start : start + _AHEAD]
                yield from zip(some, pool.map(self._whole, some), strict=True)

    def _whole(self, number: int) -> bytes | None:
        key = self._key(number)
        return self._store.get(key) if key in self._keys else None

    def _of_file(self, key: str, numbers: list[int], first: int) -> Iterator[tuple[int, bytes | None]]:
        """Yield chunks of a file that holds many, by their numbers within it."""
        how = self._format
        assert how is not None
        if key not in self._keys:
            yield from ((first + number, None) for number in numbers)
            return
        if key not in self._index:
            tail = self._store.get_tail(key, how.index_size)
            self._index[key] = self._attempt(lambda: how.index(tail))
        index = self._index[key]
        for start in range(0, len(numbers), _AHEAD):
            some = numbers[start : start + _AHEAD]
            stored = [number for number in some if int(index[number, 0]) != _ABSENT]
            starts = [int(index[number, 0]) for number in stored]
            ends = [int(index[number].sum()) for number in stored]
            found = dict(zip(stored, self._store.get_ranges(key, starts, ends) if stored else [], strict=True))
            yield from ((first + number, found.get(number)) for number in some)

    def _key(self, file: int) -> str:
        return f"{self._path}/{self._array.metadata.encode_chunk_key((file,))}"

    @property
    def _name(self) -> str:
        return self._path.rpartition("/")[2]

    def _attempt(self, work: Callable[[], T]) -> T:
        return attempt(work, self._where)


class Pass:
    """One pass over an array, from its beginning on."""

    def __init__(self, chunks: Iterator[tuple[int, npt.NDArray[Any]]], size: int) -> None:
        self._chunks, self._size = chunks, size
        self._number, self._entries = -1, np.empty(0)

    def take(self, low: int, high: int, out: npt.NDArray[Any]) -> None:
        """Write entries ``[low, high)``, which are not before what was taken last.

        Raises
        ------
        UnreadableChunkError
            They cannot be read or decoded.
        """
        at = 0
        while low < high:
            while (self._number + 1) * self._size <= low:
                try:
                    self._number, self._entries = next(self._chunks)
                except SourceError as error:
                    first = low // self._size * self._size
                    raise UnreadableChunkError(
                        error.what, where=error.where, fix=error.fix, entries=(first, first + self._size)
                    ) from error
            first = self._number * self._size
            part = self._entries[low - first : high - first]
            out[at : at + part.size] = part
            at += part.size
            low += part.size


def open_vectors(store: Storage, group: str, names: Sequence[str], keys: Container[str]) -> list[StoreVector]:
    """Open arrays of a group.

    Parameters
    ----------
    store
        The folder.
    group, names
        The arrays.
    keys
        All files of the group.

    Raises
    ------
    SourceError
        One is not there, or cannot be opened.
    """
    import zarr

    from cellmill.atlas.zarr_bridge import StorageStore

    beneath = store.zarr_store("", read_only=True) if store.is_local else StorageStore(store, keys)
    found = []
    for name in names:
        path = f"{group}/{name}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            array = attempt(lambda: zarr.open_array(beneath, path=path, mode="r"), store.join(path))  # noqa: B023
        if array.ndim != 1:
            raise SourceError(f"{path} has {array.ndim} dimensions, not one.", where=store.join(path))
        found.append(StoreVector(store, path, array, keys))
    return found


def attempt(work: Callable[[], T], where: str) -> T:
    """Do something with an array of somebody else; whatever is wrong with it is a `SourceError`."""
    try:
        return work()
    except CellmillError:
        raise
    except Exception as error:
        text = str(error).partition("\n")[0] or type(error).__name__
        raise SourceError(f"{where.rpartition('/')[2]} cannot be read: {text}.", where=where) from error


def _native(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if values.dtype == bool:
        return values.view(np.uint8)
    if values.dtype == np.float16:
        return values.astype(np.float32)
    return values.astype(values.dtype.newbyteorder("="), copy=False)
