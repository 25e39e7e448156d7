"""An object of a store as a file that is read in parts."""

from __future__ import annotations

import io
from typing import Any

import obstore

from cellmill.storage import Storage


class RemoteFile(io.RawIOBase):
    """An object, opened for reading; each read is a request for a range.

    Parameters
    ----------
    storage, key
        Where it is.

    Raises
    ------
    FileNotFoundError
        There is no such object.
    """

    def __init__(self, storage: Storage, key: str) -> None:
        super().__init__()
        self._store, self._key = storage.store, key
        self._size = int(obstore.head(self._store, key)["size"])
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
        buffer[:n] = memoryview(obstore.get_range(self._store, self._key, start=self._at, end=self._at + n)).cast("B")
        self._at += n
        return n
