"""Files of object stores: of one content as a whole, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

from cellmill.errors import SourceError, StorageError
from cellmill.ingestion.sources.remote import Facts, changed, short
from cellmill.storage import Storage
from cellmill.store_errors import patiently

T = TypeVar("T")
_BLOCK = 1 << 24


class ObjectFile:
    """A file in an object store.

    Parameters
    ----------
    storage, key
        Where it is.
    """

    def __init__(self, storage: Storage, key: str) -> None:
        self.url = storage.join(key)
        self._store, self._key = storage.store, key

    def facts(self) -> Facts | None:
        """See `RemoteFile`."""
        try:
            return facts_of(asked(lambda: self._store.head(self._key), self.url))
        except FileNotFoundError:
            return None

    def blocks(self, start: int, facts: Facts, stop: int | None = None) -> Iterator[tuple[int, bytes]]:
        """See `RemoteFile`."""
        assert facts.size is not None
        end = facts.size if stop is None else min(stop, facts.size)
        for first in range(start, end, _BLOCK):
            last = min(first + _BLOCK, end)
            yield first, self._range(first, last, facts)

    def _range(self, first: int, last: int, facts: Facts) -> bytes:
        try:
            found = self._store.get(self._key, options={"range": (first, last)})
            # Not every store honours conditions of a request, but every answer says what it is of.
            if facts_of(found.meta).tag != facts.tag:
                raise changed(self.url)
            content = bytes(found.bytes())
        except FileNotFoundError as error:
            raise changed(self.url) from error
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise _refused(self.url) from error
        except BaseError as error:
            # A range beyond the end of another content is no fault of the store.
            if self.facts() != facts:
                raise changed(self.url) from error
            raise OSError(short(error)) from error
        if len(content) != last - first:
            raise OSError(f"{len(content):,} bytes came of {last - first:,}")
        return content


def asked(ask: Callable[[], T], url: str) -> T:
    """Return what an object store answers.

    Raises
    ------
    FileNotFoundError
        It has no such file.
    SourceError
        It refuses, or does not answer, time after time.
    """
    try:
        return patiently(ask, url)
    except StorageError as error:
        raise SourceError(
            error.what,
            where=url,
            fix="Check the bucket's name, and the endpoint and credentials in the environment.",
        ) from error


def facts_of(found: Any) -> Facts:
    """Return what obstore says of a file; Azure's listings have no quotes around tags."""
    return Facts(int(found["size"]), str(found["e_tag"] or found["last_modified"]).strip('"'))


def _refused(url: str) -> SourceError:
    return SourceError("The store refuses access.", where=url, fix="Check the credentials in the environment.")
