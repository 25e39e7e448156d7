"""Where a source is: a file or a folder, on this machine or behind a URL."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from obstore.exceptions import BaseError

from cellmill.errors import SourceError
from cellmill.ingestion.datasets.fetching import sha256_of
from cellmill.ingestion.sources.cache import cached, fetch, forget
from cellmill.ingestion.sources.remote import Facts, RemoteFile, bare, is_web, remote_file, short
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
        self.name = unquote(urlsplit(self.url).path).rstrip("/").rpartition("/")[2] or self.url

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
            return f"{self._known.size}-{self._known.tag}" if self._known.tag else f"sha256-{self.sha256}"
        if is_web(self.location):
            return " ".join(f"{facts.size}-{facts.tag}" for mark in ZARR_MARKS if (facts := self.child_facts(mark)))
        return _digest("\n".join(f"{name} {size} {tag}" for name, size, tag in self._listing))

    def head(self, n: int = 512) -> bytes:
        """Return the first bytes of a file."""
        if self._path is None and n <= _HEAD and cached(self._remote, self._known) is None:
            return self._first[:n]
        with self.local_path().open("rb") as file:
            return file.read(n)

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

    def storage(self) -> Storage:
        """Return the folder's storage.

        Raises
        ------
        ConfigError
            It is on a web server, which cannot list files.
        """
        return Storage.open(self.location)

    def zarr_store(self) -> Any:
        """Return a zarr store of the folder that refuses to write."""
        if not is_web(self.location):
            return self.storage().zarr_store("", read_only=True)
        from obstore.store import HTTPStore
        from zarr.storage import ObjectStore

        plain = self.location.startswith("http://")
        return ObjectStore(HTTPStore.from_url(self.location, client_options={"allow_http": plain}), read_only=True)

    @cached_property
    def sha256(self) -> str:
        """Digest of a file's bytes, or of the names and bytes of a folder's files; all of them are read."""
        if self.is_dir:
            names = sorted(self.files())
            if self.is_local:
                return self.folder_sha256(names)
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                return self.folder_sha256(names, pool.map)
        path = self.local_path()
        digest = sha256_of(path)
        if self._path is None and digest != path.name:
            forget(path)
            raise SourceError(
                "The copy in the cache is damaged and was deleted.",
                where=f"{self.url} in {path.parent}",
                fix="Run again.",
            )
        return digest

    def files(self) -> dict[str, int]:
        """Return the sizes of a folder's files by name; a web server lists none.

        Raises
        ------
        ConfigError
            It is on a web server.
        """
        if self._path is None:
            return {name: size for name, size, _ in self._listing}
        return {name: size for name, size, _ in _walk(self._path)}

    def has(self, name: str) -> bool:
        """Return whether a folder holds a file of that name."""
        if is_web(self.location):
            return self.child_facts(name) is not None
        return self.storage().exists(name)

    def get(self, name: str) -> bytes:
        """Return the bytes of a folder's file.

        Raises
        ------
        SourceError
            There is none.
        """
        if not is_web(self.location):
            return self.storage().get(name)
        remote = self._child(name)
        facts = remote.facts()
        if facts is None:
            raise SourceError("There is no such file.", where=f"{self.url}/{name}")
        try:
            return b"".join(block for _, block in remote.blocks(0, facts))
        except OSError as error:
            raise SourceError(f"The server does not answer: {short(error)}", where=f"{self.url}/{name}") from error

    def child_facts(self, name: str) -> Facts | None:
        """Return what a web server says of a file of a folder, None if there is none."""
        return self._child(name).facts()

    def folder_sha256(self, names: Iterable[str], over: Callable[..., Iterable[str]] = map) -> str:
        """Return the digest of names and bytes of a folder's files.

        Parameters
        ----------
        names
            Names of the files, sorted.
        over
            Applies a function to each, in order, perhaps several at once.
        """
        names = list(names)
        digest = hashlib.sha256()
        for name, part in zip(names, over(lambda name: hashlib.sha256(self.get(name)).hexdigest(), names), strict=True):
            digest.update(f"{name}\0{part}\n".encode())
        return digest.hexdigest()

    @cached_property
    def _remote(self) -> RemoteFile:
        return remote_file(self.location)

    @cached_property
    def _facts(self) -> Facts | None:
        return self._remote.facts()

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
        try:
            return next(self._remote.blocks(0, self._known), (0, b""))[1][:_HEAD]
        except OSError:
            # Fetching tries again.
            with self._fetched.open("rb") as file:
                return file.read(_HEAD)

    @cached_property
    def _listing(self) -> list[tuple[str, int, str]]:
        try:
            pages = list(self.storage().store.list())
        except BaseError as error:
            raise SourceError(
                f"The store does not answer: {short(error)}",
                where=self.url,
                fix="Check the bucket's name, and the endpoint and credentials in the environment.",
            ) from error
        return sorted((i["path"], i["size"], i["e_tag"] or str(i["last_modified"])) for page in pages for i in page)

    def _child(self, name: str) -> RemoteFile:
        parts = urlsplit(self.location)
        return remote_file(parts._replace(path=f"{parts.path.rstrip('/')}/{name}").geturl())


def _stamp(path: Path) -> str:
    try:
        if not path.is_dir():
            found = path.stat()
            return f"{found.st_size}-{found.st_mtime_ns}"
        return _digest("\n".join(f"{name} {size} {time}" for name, size, time in _walk(path)))
    except OSError:
        return ""


def _walk(folder: Path) -> list[tuple[str, int, int]]:
    """Return name, size and time of change of all files below a folder, sorted."""
    found = []
    for parent, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            facts = os.stat(path)
            found.append((os.path.relpath(path, folder), facts.st_size, facts.st_mtime_ns))
    return sorted(found)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
