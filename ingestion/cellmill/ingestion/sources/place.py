"""Where a source is: a file or a folder, on this machine or behind a URL."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from cellmill.console import progress
from cellmill.digest import digest_of, digest_of_file
from cellmill.errors import SourceError
from cellmill.ingestion.sources.cache import cached, fetch, forget
from cellmill.ingestion.sources.object_file import ObjectFile, asked, facts_of
from cellmill.ingestion.sources.remote import Facts, RemoteFile, bare, is_web, read_part
from cellmill.ingestion.sources.web_file import HttpFile
from cellmill.storage import Storage

_OPAQUE = ("census:", "tiledb:")
_HEAD = 4096
_AT_ONCE = 16
ZARR_MARKS = ("zarr.json", ".zmetadata", ".zgroup")


class Place:
    """A file or a folder.

    Attributes
    ----------
    location
        Absolute path or URL, by which it can be opened again in any process.
    url
        The same without passwords and signatures, as recorded in the lineage and named in messages.
    name
        Last part of the path.
    memo
        What formats have found out about it, so that one that looks after another need not look again.

    Parameters
    ----------
    location
        A path, a ``file://`` URL, or a URL of an object store, a web server or TileDB (``census:``, ``tiledb:``).

    Raises
    ------
    ConfigError
        The URL has a scheme that is not known.
    """

    def __init__(self, location: str | Path) -> None:
        text = str(location)
        if is_web(text) or text.startswith(_OPAQUE):
            self.location, self._path = text, None
        else:
            storage = Storage.open(text)
            self.location = storage.url
            self._path = storage.local_path() if storage.is_local else None
        self.url = bare(self.location)
        self.memo: dict[str, Any] = {}
        # In names of files, # and ? and % mean nothing.
        path = unquote(urlsplit(self.url).path) if is_web(self.url) or self.is_opaque else self.url
        self.name = path.rstrip("/").rpartition("/")[2] or self.url

    def __repr__(self) -> str:
        return f"Place({self.url!r})"

    @property
    def is_opaque(self) -> bool:
        """Whether only a library of its own can look into it."""
        return self.location.startswith(_OPAQUE)

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine's disk."""
        return self._path is not None

    @property
    def exists(self) -> bool:
        """Whether there is anything."""
        if self._path is not None:
            return self._path.exists()
        return self.is_dir or self._facts is not None

    def absent(self) -> SourceError:
        """Return the error of a place where there is nothing."""
        if not is_web(self.location) or "." in self.name:
            return SourceError("The file does not exist.", where=self.url, fix="Check the path.")
        folder = self.url.partition("?")[0].rstrip("/")
        return SourceError(
            "The file does not exist; if it is a folder: web servers cannot list what is in one.",
            where=self.url,
            fix=f"Give the URL of the file itself: of a 10x folder that of its matrix, {folder}/matrix.mtx.gz.",
        )

    @cached_property
    def is_dir(self) -> bool:
        """Whether it is a folder; on a web server, which has none, a folder is what holds a zarr group."""
        if self._path is not None:
            return self._path.is_dir()
        if self.is_opaque:
            return True
        if is_web(self.location):
            # Servers answer for folders with a page, so a file is not asked for first.
            likely = urlsplit(self.location).path.rstrip("/").endswith(".zarr") or self.location.endswith("/")
            return likely and any(self.has(mark) for mark in ZARR_MARKS)
        return self._facts is None and bool(self._listing)

    @cached_property
    def size(self) -> int | None:
        """Bytes of a file, None where a server does not say."""
        if self._path is not None:
            return self._path.stat().st_size
        return self._known.size

    @cached_property
    def stamp(self) -> str:
        """Changes when the file does, or any file of the folder; cheap, but for files of servers that give no ETag."""
        if self._path is not None:
            return _stamp(self._path)
        if not self.is_dir:
            # Without an ETag only the content itself says whether it is the same.
            return f"{self._known.size}-{self._known.tag}" if self._known.tag else f"blake3-{self.digest}"
        if is_web(self.location):
            found = [self.child(mark).facts() for mark in ZARR_MARKS]
            return " ".join(f"{facts.size}-{facts.tag}" for facts in found if facts)
        return stamp_of(self._listing)

    def head(self, n: int = 512) -> bytes:
        """Return the first bytes of a file."""
        if self._path is None and n <= _HEAD and cached(self._remote, self._known) is None:
            return self._first[:n]
        with self.local_path().open("rb") as file:
            return file.read(n)

    def part(self, start: int, stop: int) -> bytes:
        """Return bytes ``[start, stop)`` of a remote file, as it was when it was first looked at; see `read_part`."""
        return read_part(self._remote, self._known, start, max(start, stop))

    def local_path(self) -> Path:
        """Return a path on this machine with the file's content; a remote file is fetched once a machine.

        Raises
        ------
        SourceError
            There is no such file.
        DownloadError, ResourceError
            It cannot be fetched.
        """
        return self._path if self._path is not None else self._fetched

    @cached_property
    def storage(self) -> Storage:
        """The folder's storage."""
        return Storage.open(self.location)

    @cached_property
    def digest(self) -> str:
        """Digest of a file's bytes, or of the names and bytes of a folder's files; all of them are read."""
        if self.is_dir:
            return self.folder_digest(self.files())
        path = self.local_path()
        with progress(path.stat().st_size, f"digesting {self.name}", "bytes") as advance:
            digest = digest_of_file(path, advance)
        if self._path is None and digest != path.name:
            forget(path)
            raise SourceError(
                "The copy in the cache is damaged and was deleted.",
                where=f"{self.url} in {path.parent}",
                fix="Run again.",
            )
        return digest

    def files(self) -> dict[str, Facts]:
        """Return what is known of a folder's files, by name; a web server lists none."""
        return self._listing if self._path is None else _walk(self._path)

    def has(self, name: str) -> bool:
        """Return whether a folder holds a file of that name."""
        return self.storage.exists(name) if self.is_local else self.child(name).facts() is not None

    def child(self, name: str) -> RemoteFile:
        """Return a file of a remote folder."""
        if not is_web(self.location):
            return ObjectFile(self.storage, name)
        parts = urlsplit(self.location)
        return HttpFile(parts._replace(path=f"{parts.path.rstrip('/')}/{name}").geturl())

    def folder_digest(self, files: Mapping[str, Facts]) -> str:
        """Return the digest of names and bytes of a folder's files.

        Parameters
        ----------
        files
            What is known of them.

        Raises
        ------
        SourceError, DownloadError
            A file cannot be read, or is not what it was.
        """

        def of(name: str) -> str:
            content = self.storage.get(name) if self.is_local else read_part(self.child(name), files[name])
            return digest_of(content)

        names, lines = sorted(files), []
        sizes = [files[name].size or 0 for name in names]
        with (
            progress(sum(sizes), f"digesting {self.name}", "bytes") as advance,
            ThreadPoolExecutor(1 if self.is_local else _AT_ONCE) as pool,
        ):
            for name, size, part in zip(names, sizes, pool.map(of, names), strict=True):
                lines.append(f"{name}\0{part}\n")
                advance(size)
        return digest_of("".join(lines).encode())

    @cached_property
    def _remote(self) -> RemoteFile:
        if is_web(self.location):
            return HttpFile(self.location)
        parent, _, key = self.location.rpartition("/")
        return ObjectFile(Storage.open(parent), key)

    @cached_property
    def _facts(self) -> Facts | None:
        is_bucket = not is_web(self.location) and self.location.count("/") == 2
        return None if is_bucket else self._remote.facts()

    @property
    def _known(self) -> Facts:
        if self._facts is None:
            raise self.absent()
        return self._facts

    @cached_property
    def _fetched(self) -> Path:
        return fetch(self._remote, self._known)

    @cached_property
    def _first(self) -> bytes:
        size = self._known.size
        return read_part(self._remote, self._known, 0, _HEAD if size is None else min(_HEAD, size))

    @cached_property
    def _listing(self) -> dict[str, Facts]:
        pages = asked(lambda: list(self.storage.store.list()), self.url)
        found = {str(item["path"]): facts_of(item) for page in pages for item in page}
        # Some programs mark a folder by an empty file of its name.
        folders = {"", *(parent for name in found for parent in _parents(name))}
        return {name: found[name] for name in sorted(found) if found[name].size or name not in folders}


def _parents(name: str) -> Iterator[str]:
    while "/" in name:
        name = name.rpartition("/")[0]
        yield name


def stamp_of(files: Mapping[str, Facts]) -> str:
    """Return what changes when any file of a folder does."""
    lines = "\n".join(f"{name} {facts.size} {facts.tag}" for name, facts in files.items())
    return digest_of(lines.encode())


def _stamp(path: Path) -> str:
    try:
        if not path.is_dir():
            found = path.stat()
            return f"{found.st_size}-{found.st_mtime_ns}"
        return stamp_of(_walk(path))
    except OSError:
        return ""


def _walk(folder: Path) -> dict[str, Facts]:
    """Return size and time of change of all files below a folder, by name, sorted."""
    found = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            facts = os.stat(path)
            found[os.path.relpath(path, folder)] = Facts(facts.st_size, str(facts.st_mtime_ns))
    return dict(sorted(found.items()))
