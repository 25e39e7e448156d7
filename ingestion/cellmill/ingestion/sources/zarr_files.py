"""The files of a zarr group, wherever it is: a folder, a prefix of an object store, a web server or a zip archive."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import zarr
from zarr.storage import ZipStore

from cellmill.atlas.zarr_bridge import StorageStore
from cellmill.errors import SourceError
from cellmill.ingestion.sources.bombs import LARGEST_BLOCK, SUSPICIOUS_BYTES, SUSPICIOUS_RATIO
from cellmill.ingestion.sources.place import ZARR_MARKS, Place, stamp_of
from cellmill.ingestion.sources.remote import Facts, is_web, read_part, short
from cellmill.ingestion.sources.remote_folder import RemoteFolder
from cellmill.ingestion.sources.zarr_claims import part_keys

_ZIP = b"PK\x03\x04"
_AT_ONCE = 16
_MOST_FILES = 1_000_000


@dataclass(frozen=True)
class ZarrFiles:
    """A zarr group's files.

    Attributes
    ----------
    url
        For messages.
    store
        The zarr store.
    prefix
        Where in the store the group is.
    sizes
        Bytes of each file, by its name below the group.
    consolidated
        Whether the group's own summary of its metadata is used; it may be older than the rest.
    stamp, digest
        See `Source`.
    """

    url: str
    store: Any
    prefix: str
    sizes: Mapping[str, int]
    consolidated: bool
    stamp: str
    digest: Callable[[], str]

    def close(self) -> None:
        """Let go of the store."""
        self.store.close()


def is_zarr(place: Place) -> bool:
    """Return whether a place is a zarr group, or a zip archive of one."""
    if place.is_dir:
        return any(place.has(mark) for mark in ZARR_MARKS)
    return place.head(4) == _ZIP and zipfile.is_zipfile(place.local_path()) and _prefix_in(place) is not None


def zarr_files(place: Place) -> ZarrFiles:
    """Return the files of a zarr group.

    Raises
    ------
    SourceError
        It is not there, an archive would grow too much, or a web server's group has no consolidated metadata.
    """
    if "zarr" not in place.memo:
        place.memo["zarr"] = _files(place)
    found: ZarrFiles = place.memo["zarr"]
    return found


def _files(place: Place) -> ZarrFiles:
    if not place.is_dir:
        return _zipped(place)
    if is_web(place.location):
        return _on_the_web(place)
    files = place.files()
    store = place.storage.zarr_store("", read_only=True) if place.is_local else _remote(place, files)
    return ZarrFiles(place.url, store, "", _sizes(files), False, place.stamp, lambda: place.digest)


def _remote(place: Place, files: Mapping[str, Facts]) -> StorageStore:
    return StorageStore(RemoteFolder(place.url, place.child, files), files)


def _sizes(files: Mapping[str, Facts]) -> dict[str, int]:
    return {name: facts.size or 0 for name, facts in files.items()}


def _zipped(place: Place) -> ZarrFiles:
    path = place.local_path()
    prefix = _prefix_in(place)
    if prefix is None:
        raise SourceError("The archive holds no zarr group.", where=place.url)
    with zipfile.ZipFile(path) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist() if not info.is_dir()}
    total, stored = sum(sizes.values()), path.stat().st_size
    largest = max(sizes.values(), default=0)
    if largest > LARGEST_BLOCK or (total > SUSPICIOUS_BYTES and total > stored * SUSPICIOUS_RATIO):
        raise SourceError(
            f"The archive of {stored / 1e6:,.1f} MB would grow to {total / 1e9:,.1f} GB.",
            where=place.url,
            fix="Unpack it where you trust it, and give the folder.",
        )
    return ZarrFiles(place.url, ZipStore(path, mode="r"), prefix, sizes, False, place.stamp, lambda: place.digest)


def _prefix_in(place: Place) -> str | None:
    """Return where in an archive the zarr group is: at the root, or in the only folder; None if there is none."""
    try:
        with zipfile.ZipFile(place.local_path()) as archive:
            names = set(archive.namelist())
    except (zipfile.BadZipFile, OSError) as error:
        raise SourceError(f"The archive is damaged: {short(error)}.", where=place.url, fix="Fetch it again.") from error
    if any(mark in names for mark in ZARR_MARKS):
        return ""
    tops = {name.partition("/")[0] for name in names if not name.startswith("__MACOSX")}
    top = tops.pop() if len(tops) == 1 else ""
    return top if top and any(f"{top}/{mark}" in names for mark in ZARR_MARKS) else None


def _on_the_web(place: Place) -> ZarrFiles:
    """Ask for every file that there may be: a web server lists none."""
    about = _look(place, ZARR_MARKS)
    about = _look(place, _metadata_names(place, about))
    files = dict(sorted({**about, **_look(place, _chunk_names(place, _remote(place, about)))}.items()))
    if untold := next((name for name, facts in files.items() if not facts.tag), ""):
        raise SourceError(
            f"The server gives neither ETag nor time of change of {untold}, so nothing would tell a change.",
            where=place.url,
            fix="Fetch it as a whole, and give the folder.",
        )
    return ZarrFiles(
        place.url,
        _remote(place, files),
        "",
        _sizes(files),
        True,
        stamp_of(files),
        lambda: place.folder_digest(files),
    )


def _look(place: Place, names: Iterable[str]) -> dict[str, Facts]:
    """Return what is known of those files that there are."""
    names = list(names)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = pool.map(lambda name: place.child(name).facts(), names)
        return {name: facts for name, facts in zip(names, found, strict=True) if facts is not None}


def _metadata_names(place: Place, marks: Mapping[str, Facts]) -> list[str]:
    """Return the names of the files with metadata, as the consolidated metadata lists them."""

    def read(name: str) -> Any:
        return json.loads(read_part(place.child(name), marks[name]))

    try:
        if ".zmetadata" in marks:
            return [".zmetadata", *read(".zmetadata")["metadata"]]
        about = read("zarr.json")
        return ["zarr.json", *(f"{path}/zarr.json" for path in about["consolidated_metadata"]["metadata"])]
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(
            "The zarr group has no consolidated metadata, without which a web server's cannot be read.",
            where=place.url,
            fix="Run zarr.consolidate_metadata on it, or fetch it as a whole.",
        ) from error


def _chunk_names(place: Place, store: Any) -> list[str]:
    names: list[str] = []
    try:
        root = zarr.open_group(store, mode="r", use_consolidated=True)
        members = [item for _, item in root.members(max_depth=None)]
    except (ValueError, KeyError, TypeError, zarr.errors.BaseZarrError) as error:
        raise SourceError(f"The zarr group cannot be opened: {short(error)}.", where=place.url) from error
    for item in members:
        if isinstance(item, zarr.Array):
            for key in part_keys(item):
                names.append(key)
                if len(names) > _MOST_FILES:
                    raise SourceError(
                        f"The zarr group claims more than {_MOST_FILES:,} chunks, too many to ask a web server for.",
                        where=place.url,
                        fix="Fetch it, and give the folder.",
                    )
    return names
