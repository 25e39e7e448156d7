"""A zarr store that hands out no chunk that would grow to more than its array says."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any

from zarr.abc.store import ByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import WrapperStore

from cellmill.errors import SourceError
from cellmill.ingestion.sources.growth import grown_size, is_cut
from cellmill.ingestion.sources.zarr_claims import Limit

_ENTRY, _CHECKSUM, _NOTHING = 16, 4, 2**64 - 1


class GuardedStore(WrapperStore[Store]):
    """A store whose chunks are looked at before a codec sees them.

    Parameters
    ----------
    store
        The store beneath.
    url
        Where it is, for messages.
    limits
        By path of an array, what its chunks may grow to; filled as arrays are opened.
    """

    def __init__(self, store: Store, url: str, limits: dict[str, Limit] | None = None) -> None:
        super().__init__(store)
        self.url = url
        self.limits: dict[str, Limit] = {} if limits is None else limits

    def _with_store(self, store: Store) -> GuardedStore:
        return GuardedStore(store, self.url, self.limits)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Return what is stored under a key.

        Raises
        ------
        SourceError
            It is cut short, or would grow to more than it should.
        """
        found = await self._store.get(key, prototype, byte_range)
        if found is not None:
            self._check(key, found, byte_range)
        return found

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Return parts of what is stored under keys; see `get`."""
        return [await self.get(key, prototype, wanted) for key, wanted in key_ranges]

    def grown(self, key: str) -> int:
        """Return to how many bytes the largest chunk under a key grows."""
        found, limit = sync(self.get(key, default_buffer_prototype())), self._limit(key)
        if found is None or limit is None:
            return 0
        stored = found.to_bytes()
        index = limit.chunks_in_shard * _ENTRY + _CHECKSUM
        parts = _split(stored, limit, index) if limit.chunks_in_shard else [stored]
        return max((grown_size(part, limit.compressor, limit.bytes) for part in parts), default=0)

    def _check(self, key: str, found: Buffer, wanted: ByteRequest | None) -> None:
        limit = self._limit(key)
        if limit is None or isinstance(wanted, SuffixByteRequest):
            return
        stored = found.to_bytes()
        index = limit.chunks_in_shard * _ENTRY + _CHECKSUM
        if not limit.chunks_in_shard:
            parts = [stored]
        elif wanted is None:
            parts = _split(stored, limit, index)
        else:
            at_start = isinstance(wanted, RangeByteRequest) and wanted.start == 0
            parts = [] if limit.index_first and at_start and len(stored) == index else [stored]
        if any(is_cut(part, limit.compressor) for part in parts):
            raise SourceError(
                f"The chunk {key} is cut short.", where=self.url, fix="Fetch or copy it again as a whole."
            )
        if any(grown_size(part, limit.compressor, limit.bytes) > limit.bytes for part in parts):
            raise SourceError(
                f"The chunk {key} grows to more than its {limit.bytes / 1e6:,.1f} MB.",
                where=self.url,
                fix="The data is damaged or not what it claims: fetch it again, or write it again with anndata.",
            )

    def _limit(self, key: str) -> Limit | None:
        path = key
        while "/" in path:
            path = path.rpartition("/")[0]
            if path in self.limits:
                last = key[len(path) + 1 :]
                return None if last in (".zarray", ".zattrs", "zarr.json") else self.limits[path]
        return None


def _split(stored: bytes, limit: Limit, index: int) -> list[bytes]:
    """Return the chunks of a shard; places outside of it are left to who reads it."""
    if len(stored) < index:
        return []
    start = 0 if limit.index_first else len(stored) - index
    numbers: tuple[Any, ...] = struct.unpack_from(f"<{2 * limit.chunks_in_shard}Q", stored, start)
    pairs = zip(numbers[::2], numbers[1::2], strict=True)
    return [stored[offset : offset + size] for offset, size in pairs if offset != _NOTHING]
