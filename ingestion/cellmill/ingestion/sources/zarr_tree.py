"""AnnData's tree of groups and arrays in a zarr group, which no array leaves unchecked."""

from __future__ import annotations

import json
from math import prod
from typing import Any

import zarr
from obstore.exceptions import BaseError
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from cellmill.errors import SourceError
from cellmill.ingestion.sources.matrix import block_bytes
from cellmill.ingestion.sources.remote import short
from cellmill.ingestion.sources.zarr_claims import (
    limit_of,
    part_keys,
    refuse_codec,
    refuse_lost_parts,
    refuse_zarr_claim,
    refuse_zarr_gaps,
)
from cellmill.ingestion.sources.zarr_files import ZarrFiles
from cellmill.ingestion.sources.zarr_guard import GuardedStore

_FIX = "Fetch or copy it again as a whole, or write it again with anndata."
_BROKEN = (ValueError, KeyError, TypeError, AttributeError, OSError, RuntimeError, BaseError)

_TEXT_OBJECT, _TEXT_COPIES = 48, 3.5
"""Bytes of a value of text beside its characters, and how often these are in memory: zarr's, numpy's and Python's."""


class ZarrNode:
    """A group of a zarr store, sliced as one of HDF5 is.

    Parameters
    ----------
    group
        The group.
    store
        The store, for what zarr does not say.
    """

    def __init__(self, group: zarr.Group, store: GuardedStore) -> None:
        self._group, self._store = group, store
        self.attrs = group.attrs

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._find(key) is not None

    def __getitem__(self, key: str) -> Any:
        found = self._find(key)
        if found is None:
            raise KeyError(key)
        return ZarrNode(found, self._store) if isinstance(found, zarr.Group) else found

    def _find(self, key: str) -> Any:
        try:
            return self._group[key]
        except KeyError:
            return None
        except _BROKEN as error:
            path = f"{self._group.path}/{key}".lstrip("/")
            if codec := self._odd_codec(path):
                refuse_codec(f"/{path}", codec, self._store.url)
            raise SourceError(f"/{path} cannot be opened: {short(error)}.", where=self._store.url, fix=_FIX) from error

    def _odd_codec(self, path: str) -> str:
        """Return the name of the first codec for objects of an array that zarr does not open."""
        stored = sync(self._store.get(f"{path}/.zarray", default_buffer_prototype()))
        try:
            about = json.loads(stored.to_bytes()) if stored is not None else {}
        except ValueError:
            return ""
        codecs = [codec for codec in [*(about.get("filters") or ()), about.get("compressor")] if codec]
        return next((str(codec["id"]) for codec in codecs if codec.get("id") in _OBJECTS), "")


_OBJECTS = ("pickle", "json2", "msgpack2", "vlen-array")


class ZarrTree(ZarrNode):
    """The root; see `Tree`.

    Parameters
    ----------
    files
        The store and the sizes of its files.
    """

    def __init__(self, files: ZarrFiles) -> None:
        self._files = files
        store = GuardedStore(files.store, files.url)
        try:
            root = zarr.open_group(store, mode="r", path=files.prefix or None, use_consolidated=files.consolidated)
        except (*_BROKEN, zarr.errors.BaseZarrError) as error:
            raise SourceError(f"The zarr group cannot be opened: {short(error)}.", where=files.url, fix=_FIX) from error
        super().__init__(root, store)

    def names(self, key: str) -> list[str]:
        """Return the names of what is in a group, whether it can be opened or not."""
        start = f"{self._files.prefix}/{key}/".lstrip("/")
        return sorted(
            {
                rest.partition("/")[0]
                for name in self._files.sizes
                if name.startswith(start) and "/" in (rest := name[len(start) :])
            }
        )

    def check(self, array: Any, where: str) -> None:
        """Refuse an array that claims too much, or is stored in a way that is not harmless."""
        if array.path in self._store.limits:
            return
        limit = limit_of(array, where)
        refuse_zarr_claim(array, self._files.sizes, where)
        self._store.limits[array.path] = limit
        if len(array.shape) == 1:
            refuse_lost_parts(array, self._files.sizes, where)

    def check_whole(self, array: Any, where: str) -> None:
        """Refuse an array that claims too much, or that is not there as a whole."""
        refuse_zarr_gaps(array, self._files.sizes, where)
        self.check(array, where)

    def chunk_bytes(self, array: Any, where: str) -> int:
        """Return what a chunk takes; of text, that whose chunk is stored in most bytes."""
        self.check(array, where)
        if array.dtype.kind not in "OT":
            return block_bytes(array)
        largest = max(part_keys(array), key=lambda key: self._files.sizes.get(key, 0), default="")
        return int(prod(array.chunks) * _TEXT_OBJECT + self._store.grown(largest) * _TEXT_COPIES)

    def close(self) -> None:
        """Let go of the store."""
        self._files.close()
