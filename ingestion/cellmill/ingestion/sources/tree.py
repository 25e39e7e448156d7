"""What reading AnnData needs of an open tree of groups and arrays, be it HDF5 or zarr."""

from __future__ import annotations

from typing import Any, Protocol


class Tree(Protocol):
    """An open tree of groups and arrays."""

    def __contains__(self, key: object) -> bool:
        """Return whether there is anything at a path."""
        ...

    def __getitem__(self, key: str) -> Any:
        """Return the group or array at a path."""
        ...

    def names(self, key: str) -> list[str]:
        """Return the names of what is in a group."""
        ...

    def check(self, array: Any, where: str) -> None:
        """Refuse an array that claims more than is there."""
        ...

    def check_whole(self, array: Any, where: str) -> None:
        """Refuse an array that claims more than is there, or of which parts are missing."""
        ...

    def chunk_bytes(self, array: Any, where: str) -> int:
        """Return what a chunk of an array takes in memory while it is decoded as a whole, 0 where it has none."""
        ...

    def close(self) -> None:
        """Let go of the file."""
        ...
