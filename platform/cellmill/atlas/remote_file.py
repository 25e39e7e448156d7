"""An object of a store as a file that is read in parts."""

from __future__ import annotations

import io
from typing import Any

from cellmill.storage import Storage


class RemoteFile(io.RawIOBase):
    """An object, opened for reading; each read is a request for a range.

    Parameters
    ----------
    storage, key
        Where it is.

    Raises
    ------
    SourceError
        There is no such object.
    """

    def __init__(self, storage: Storage, key: str) -> None:
        super().__init__()
        self._storage, self._key = storage, key
        self._size = storage.size(key)
        self._at = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the place of the next byte."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place."""
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer with the next bytes, and return how many."""
        n = min(len(buffer), self._size - self._at)
        if n <= 0:
            return 0
        (buffer[:n],) = self._storage.get_ranges(self._key, [self._at], [self._at + n])
        self._at += n
        return n
