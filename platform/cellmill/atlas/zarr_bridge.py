"""A remote folder as a store that zarr reads: every request is patient, and its length is verified."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Container, Iterable, Sequence
from typing import Protocol

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype


class Files(Protocol):
    """A folder as `Storage` reads it."""

    url: str

    def get(self, key: str) -> bytes:
        """Return all of a file."""
        ...

    def get_ranges(self, key: str, starts: Sequence[int], ends: Sequence[int]) -> list[bytes]:
        """Return ranges of a file."""
        ...

    def get_tail(self, key: str, n: int) -> bytes:
        """Return the end of a file."""
        ...


class StorageStore(Store):
    """Files of a folder, for reading.

    Parameters
    ----------
    storage
        The folder.
    keys
        Its files; for others nothing is asked.
    """

    supports_writes = False
    supports_deletes = False
    supports_listing = False

    def __init__(self, storage: Files, keys: Container[str]) -> None:
        super().__init__(read_only=True)
        self._storage, self._keys = storage, keys

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StorageStore) and other._storage.url == self._storage.url

    def with_read_only(self, read_only: bool = False) -> StorageStore:
        """Return this store: there is no other kind."""
        return self

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Return what is stored under a key, None for nothing."""
        found = await asyncio.to_thread(self._get, key, byte_range)
        return None if found is None else prototype.buffer.from_bytes(found)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Return parts of what is stored under keys; see `get`."""
        return list(await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges)))

    async def exists(self, key: str) -> bool:
        """Return whether something is stored under a key."""
        return key in self._keys

    def _get(self, key: str, part: ByteRequest | None) -> bytes | None:
        storage = self._storage
        if key not in self._keys:
            return None
        match part:
            case RangeByteRequest(start=start, end=end):
                return storage.get_ranges(key, [start], [end])[0]
            case OffsetByteRequest(offset=offset):
                return storage.get(key)[offset:]
            case SuffixByteRequest(suffix=suffix):
                return storage.get_tail(key, suffix)
        return storage.get(key)

    async def set(self, key: str, value: Buffer) -> None:
        """Refuse."""
        raise NotImplementedError

    async def delete(self, key: str) -> None:
        """Refuse."""
        raise NotImplementedError

    def list(self) -> AsyncIterator[str]:
        """Refuse."""
        raise NotImplementedError

    def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Refuse."""
        raise NotImplementedError

    def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Refuse."""
        raise NotImplementedError
