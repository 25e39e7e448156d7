"""AnnData's tree of groups and arrays in an HDF5 file."""

from __future__ import annotations

from typing import Any

import h5py

from cellmill.errors import SourceError
from cellmill.ingestion.sources.bombs import refuse_bombs, refuse_gaps
from cellmill.ingestion.sources.matrix import block_bytes


class Hdf5Tree:
    """An open HDF5 file, or a group of it; see `Tree`.

    Parameters
    ----------
    root
        The file or group.
    url
        Where it is, for messages; the file's name by default.
    """

    def __init__(self, root: h5py.Group, url: str = "") -> None:
        self._root, self._url = root, url or str(root.file.filename)

    def __contains__(self, key: object) -> bool:
        try:
            return key in self._root
        except (OSError, RuntimeError) as error:
            raise self._damaged(key) from error

    def __getitem__(self, key: str) -> Any:
        try:
            return self._root[key]
        except (OSError, RuntimeError, KeyError) as error:
            raise self._damaged(key) from error

    def names(self, key: str) -> list[str]:
        """Return the names of what is in a group."""
        return list(self._root[key])

    def check(self, array: Any, where: str) -> None:
        """Refuse an array that claims too much."""
        refuse_bombs(array, where)

    def check_whole(self, array: Any, where: str) -> None:
        """Refuse an array that claims too much, or that is not there as a whole."""
        refuse_bombs(array, where)
        refuse_gaps(array, where)

    def chunk_bytes(self, array: Any, where: str) -> int:
        """Return what a chunk takes; text of any length is beside the chunks, and read as it is asked for."""
        self.check(array, where)
        return block_bytes(array)

    def close(self) -> None:
        """Close the file."""
        self._root.file.close()

    def _damaged(self, key: object) -> SourceError:
        return SourceError(
            f"/{key} cannot be opened: the file is damaged.", where=self._url, fix="Fetch or copy it again."
        )
