"""AnnData's tree of groups and arrays in an HDF5 file."""

from __future__ import annotations

from typing import Any

import h5py

from cellmill.ingestion.sources.bombs import refuse_bombs, refuse_gaps


class Hdf5Tree:
    """An open HDF5 file, or a group of it; see `Tree`.

    Parameters
    ----------
    root
        The file or group.
    """

    def __init__(self, root: h5py.Group) -> None:
        self._root = root

    def __contains__(self, key: object) -> bool:
        return key in self._root

    def __getitem__(self, key: str) -> Any:
        return self._root[key]

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

    def close(self) -> None:
        """Close the file."""
        self._root.file.close()
