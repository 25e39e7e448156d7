"""Patterns of files, on a local disk and in object stores."""

from __future__ import annotations

import fnmatch
import glob

from cellmill.errors import ConfigError, SourceError
from cellmill.ingestion.sources.object_file import asked
from cellmill.ingestion.sources.place import Place
from cellmill.ingestion.sources.remote import is_web
from cellmill.storage import Storage


def find_places(pattern: str) -> list[Place]:
    """Return the files and folders that a path, a URL or a pattern names, sorted.

    ``*``, ``?`` and ``[...]`` stand for parts of one name, never for a ``/``.

    Raises
    ------
    SourceError
        A pattern finds nothing.
    ConfigError
        A pattern of files on a web server, which cannot list them.
    """
    if is_web(pattern):
        if "*" in pattern.partition("?")[0]:
            raise ConfigError(
                "A web server cannot list its files.", where=pattern, fix="Give one source for each URL, without `*`."
            )
        return [Place(pattern)]
    if not glob.has_magic(pattern) or Place(pattern).is_opaque:
        return [Place(pattern)]
    storage = Storage.open(pattern)
    if storage.is_local:
        # A file may be called like a pattern.
        found = [storage.url] if storage.local_path().exists() else sorted(glob.glob(storage.url))
    else:
        # The bucket itself holds no pattern.
        start = storage.url.index("/", storage.url.index("://") + 3)
        found = _match(storage.url[:start], storage.url[start + 1 :].split("/"))
    if not found:
        raise SourceError("No file has such a name.", where=pattern, fix="Check the pattern.")
    return [Place(path) for path in found]


def _match(folder: str, parts: list[str]) -> list[str]:
    """Return what matches below a folder, one level at a time: a zarr folder may hold a million files."""
    here, *rest = parts
    if not glob.has_magic(here):
        if rest:
            return _match(f"{folder}/{here}", rest)
        return [f"{folder}/{here}"] if Place(f"{folder}/{here}").exists else []
    listed = asked(Storage.open(folder).store.list_with_delimiter, folder)
    folders = [path.rstrip("/").rpartition("/")[2] for path in listed["common_prefixes"]]
    files = [item["path"].rpartition("/")[2] for item in listed["objects"]]
    names = sorted({name for name in (folders if rest else [*folders, *files]) if fnmatch.fnmatchcase(name, here)})
    if not rest:
        return [f"{folder}/{name}" for name in names]
    return [path for name in names for path in _match(f"{folder}/{name}", rest)]
