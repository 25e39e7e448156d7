"""One interface to bytes on a local disk or in an object store (s3, gs, az), through obstore."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, from_url

from cellmill.errors import ConfigError, SourceError

_REMOTE_SCHEMES = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl"})


class Storage:
    """A folder, local or remote, whose keys are relative paths with forward slashes.

    Object stores take their credentials and endpoint from the usual environment variables
    (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL``, ``AWS_ALLOW_HTTP``, ``GOOGLE_APPLICATION_CREDENTIALS``, ...).

    Parameters
    ----------
    url
        A local path, a ``file://`` URL, or ``s3://bucket/prefix``, ``gs://...``, ``az://...``.

    Raises
    ------
    ConfigError
        The URL has a scheme that is not known.
    """

    def __init__(self, url: str | Path) -> None:
        text = str(url)
        scheme = urlparse(text).scheme
        if scheme in ("", "file"):
            root = Path(urlparse(text).path if scheme else text).expanduser().absolute()
            self._root: Path | None = root
            self.url = str(root)
            self._store: Any = None
        elif scheme in _REMOTE_SCHEMES:
            self._root = None
            self.url = text.rstrip("/")
            self._store = from_url(self.url)
        else:
            raise ConfigError(
                f"Storage of the kind {scheme!r} is not known.",
                where=text,
                fix=f"Use a local path or one of: {', '.join(sorted(_REMOTE_SCHEMES))}.",
            )

    @classmethod
    def open(cls, url: str | Path) -> Storage:
        """Return the storage at `url`; nothing is created before the first write."""
        return cls(url)

    def __reduce__(self) -> tuple[object, ...]:
        return (Storage, (self.url,))

    def __repr__(self) -> str:
        return f"Storage({self.url!r})"

    @property
    def is_local(self) -> bool:
        """Whether the storage is a folder of this machine."""
        return self._root is not None

    @property
    def store(self) -> Any:
        """The obstore store beneath."""
        if self._store is None:
            self._store = LocalStore(self.url, mkdir=True)
        return self._store

    def local_path(self, key: str = "") -> Path:
        """Return the path of `key` on this machine's disk.

        Raises
        ------
        ConfigError
            The storage is remote.
        """
        if self._root is None:
            raise ConfigError("A local folder is needed here.", where=self.url, fix="Give a path on this machine.")
        return self._root / key if key else self._root

    def join(self, key: str) -> str:
        """Return the URL of `key`."""
        return f"{self.url}/{key}"

    def get(self, key: str) -> bytes:
        """Return the bytes stored under `key`.

        Raises
        ------
        SourceError
            There is nothing under `key`, or the store does not answer.
        """
        try:
            return bytes(self.store.get(key).bytes())
        except FileNotFoundError:
            raise SourceError("There is no such file.", where=self.join(key), fix="Check the path.") from None
        except (BaseError, OSError) as error:
            raise SourceError(f"The store does not answer: {_first_line(error)}", where=self.join(key)) from error

    def put(self, key: str, data: bytes) -> None:
        """Write `data` under `key`; a reader sees the old bytes or the new ones, never a part."""
        self.store.put(key, data)

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Return bytes of what is stored under `key`, fewer if it ends before.

        Parameters
        ----------
        key
            The file.
        start
            The first byte; counted from the end if it is negative.
        length
            How many.

        Raises
        ------
        SourceError
            There is nothing under `key`, or the store does not answer.
        """
        try:
            if self._root is not None:
                with (self._root / key).open("rb", buffering=0) as file:
                    end = file.seek(0, os.SEEK_END)
                    file.seek(start if start >= 0 else max(0, end + start))
                    return file.read(length)
            if start < 0:
                found: Any = obstore.get(self.store, key, options={"range": {"suffix": -start}})
                return bytes(found.bytes())[:length]
            return bytes(obstore.get_range(self.store, key, start=start, length=length)) if length else b""
        except FileNotFoundError:
            raise SourceError("There is no such file.", where=self.join(key), fix="Check the path.") from None
        except (BaseError, OSError) as error:
            raise SourceError(f"The store does not answer: {_first_line(error)}", where=self.join(key)) from error

    def put_parts(self, key: str, parts: Iterable[Any]) -> None:
        """Write buffers one after the other under `key`; a reader sees all of them or what was there before."""
        self.store.put(key, iter(parts))

    def put_file(self, key: str, path: Path) -> None:
        """Copy a local file, of any size, to `key`; a reader sees all of it or none."""
        obstore.put(self.store, key, path)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write `data` under `key` unless something is there; return whether this call wrote it.

        Atomic between processes on a local disk and, by conditional put, on object stores.
        """
        try:
            self.store.put(key, data, mode="create")
        except AlreadyExistsError:
            return False
        return True

    def exists(self, key: str) -> bool:
        """Return whether a file is stored under `key`."""
        if self._root is not None:
            return (self._root / key).is_file()
        try:
            self.store.head(key)
        except FileNotFoundError:
            return False
        return True

    def list(self, prefix: str = "") -> list[str]:
        """Return the keys of all files below `prefix`, sorted."""
        if self._root is not None:
            folder = self._root / prefix
            if not folder.is_dir():
                return []
            return sorted(path.relative_to(self._root).as_posix() for path in folder.rglob("*") if path.is_file())
        return sorted(item["path"] for page in self.store.list(prefix or None) for item in page)

    def delete(self, key: str) -> None:
        """Delete the file under `key`; it is no error if there is none."""
        try:
            self.store.delete(key)
        except FileNotFoundError:
            return

    def delete_tree(self, prefix: str) -> None:
        """Delete everything below `prefix`.

        Raises
        ------
        ValueError
            `prefix` is empty.
        """
        if not prefix.strip("/"):
            raise ValueError("refusing to delete the whole storage")
        if self._root is not None:
            shutil.rmtree(self._root / prefix, ignore_errors=True)
            return
        keys = self.list(prefix)
        if keys:
            obstore.delete(self.store, keys)

    def zarr_store(self, key: str, *, read_only: bool = False) -> Any:
        """Return a zarr v3 store rooted at `key`."""
        from zarr.storage import LocalStore as ZarrLocalStore
        from zarr.storage import ObjectStore

        if self._root is not None:
            return ZarrLocalStore(self._root / key, read_only=read_only)
        return ObjectStore(from_url(self.join(key)), read_only=read_only)

    def delta_uri(self, key: str) -> str:
        """Return the URI of a Delta table stored under `key`, creating its folder on a local disk."""
        if self._root is not None:
            (self._root / key).mkdir(parents=True, exist_ok=True)
        return self.join(key)

    def delta_options(self) -> dict[str, str]:
        """Return the storage options that `deltalake` needs beside the environment."""
        return {"conditional_put": "etag"} if self.url.startswith(("s3://", "s3a://")) else {}


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
