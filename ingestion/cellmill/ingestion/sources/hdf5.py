"""Opening HDF5 files, and saying what is wrong with those that do not open."""

from __future__ import annotations

from pathlib import Path

import h5py

from cellmill.errors import SourceError
from cellmill.ingestion.sources.place import Place

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_STARTS = (0, 512, 1024, 2048)
"""Where HDF5 may begin; MuData writes a line of text before it."""


def open_hdf5(place: Place) -> h5py.File:
    """Open a place as HDF5; the caller closes it.

    Raises
    ------
    SourceError
        It is missing, cut short, or no HDF5, or parts of it are in other files.
    """
    path = place.local_path()
    if not path.is_file():
        raise place.absent()
    file = _open(path, place.url)
    outside: list[str] = []
    try:
        file.visititems_links(lambda name, link: outside.append(name) if isinstance(link, h5py.ExternalLink) else None)
    except (OSError, RuntimeError, KeyError, SystemError) as error:
        file.close()
        raise _damaged(place.url) from error
    if outside:
        file.close()
        # What is elsewhere is not in the file's checksum.
        raise SourceError(f"{outside[0]} is in another file.", where=place.url, fix="Write the file again as a whole.")
    return file


def _open(path: Path, url: str) -> h5py.File:
    try:
        try:
            return h5py.File(path, "r", locking=False)
        except OSError as error:
            if "locking flag" not in str(error):
                raise
            # This process has the file open already, with locks.
            return h5py.File(path, "r")
    except OSError as error:
        if "truncated" in str(error):
            raise SourceError(
                "The file is cut short.", where=url, fix="Fetch or copy it again, and compare its size."
            ) from error
        raise _damaged(url) from error


def _damaged(url: str) -> SourceError:
    return SourceError("The file is not HDF5, or its HDF5 is damaged.", where=url, fix="Fetch or copy it again.")


def is_hdf5(place: Place) -> bool:
    """Return whether a place is a file that begins like HDF5."""
    if place.is_dir:
        return False
    head = place.head(_STARTS[-1] + len(_SIGNATURE))
    return any(head[start : start + len(_SIGNATURE)] == _SIGNATURE for start in _STARTS)


def hdf5_names(place: Place) -> frozenset[str]:
    """Return the names at the root of an HDF5 file, none if it is something else.

    Raises
    ------
    SourceError
        It begins like HDF5 but cannot be opened.
    """
    if "hdf5" not in place.memo:
        place.memo["hdf5"] = frozenset(_names(place)) if is_hdf5(place) else frozenset()
    names: frozenset[str] = place.memo["hdf5"]
    return names


def _names(place: Place) -> list[str]:
    with open_hdf5(place) as file:
        return list(file)
