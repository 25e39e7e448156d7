"""One interface to bytes on a local disk or in an object store (s3, gs, az), through obstore."""

from __future__ import annotations

import os
import shutil
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import unquote, urlparse

from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore

from cellmill.errors import ConfigError, SourceError, StorageError
from cellmill.local_files import PARTIAL, half_written, read_into, read_ranges, read_tail
from cellmill.remote_store import RETRIES, RETRY_S, EmptyFileError, fetch, find_spans, open_store
from cellmill.scratch import ScratchFolder
from cellmill.store_errors import no_bucket, patiently, translated

T = TypeVar("T")
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
        The URL has a scheme that is not known, or names no store.
    """

    def __init__(self, url: str | Path) -> None:
        text = str(url)
        scheme = urlparse(text).scheme
        if scheme in ("", "file"):
            root = Path(unquote(urlparse(text).path) if scheme else text).expanduser().absolute()
            self._root: Path | None = root
            self.url = str(root)
            self._store: Any = None
        elif scheme in _REMOTE_SCHEMES:
            self._root = None
            self.url = text.rstrip("/")
            try:
                self._store = open_store(self.url)
            except BaseError as error:
                raise ConfigError(
                    f"The store cannot be opened: {str(error).splitlines()[0]}.",
                    where=text,
                    fix="Check the URL, and the account and credentials in the environment.",
                ) from error
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

    def beside(self, url: str, content: str = "") -> Storage:
        """Return the storage at another URL, opened as this one is.

        Parameters
        ----------
        url
            Where it is.
        content
            Names what the files there hold, for a storage that keeps copies.
        """
        return Storage(url)

    def holding(self, content: str) -> Storage:
        """Return the storage for files of some content, for a storage that keeps copies."""
        return self

    def forget(self) -> None:
        """Drop copies of the files that were read, for a storage that keeps some: they are not what was written."""

    def anew(self) -> Storage:
        """Return the storage without copies that are kept already."""
        return self

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
        """Return the bytes stored under `key`, all of them.

        Raises
        ------
        SourceError
            There is nothing under `key`.
        StorageError
            The store refuses, or does not answer in full, time after time.
        """
        if self._root is not None:
            return self._known(key, (self._root / key).read_bytes)
        try:
            return self._known(key, lambda: fetch(self.store, key, {"offset": 0}))
        except EmptyFileError:
            return b""

    def get_ranges(self, key: str, starts: Sequence[int], ends: Sequence[int], gap: int = 1 << 20) -> list[bytes]:
        """Return bytes ``starts[i]`` up to, not including, ``ends[i]`` of a file, exactly as many as asked for.

        Parameters
        ----------
        key
            The file.
        starts, ends
            Byte positions; ranges may overlap.
        gap
            Ranges of a remote file that are no further apart than this are fetched as one.

        Raises
        ------
        SourceError
            There is nothing under `key`, or it ends before.
        StorageError
            The store refuses, or does not answer in full, time after time.
        """
        try:
            if self._root is not None:
                return self._known(key, lambda: read_ranges(self.local_path(key), starts, ends))
            return self._fetch_ranges(key, starts, ends, gap)
        except StorageError as error:
            # Not a size that was kept: what is there now counts.
            if Storage.size(self, key) >= max(ends):
                raise
            what = f"The file ends before byte {max(ends):,}."
            raise SourceError(what, where=self.join(key), fix="Restore it from a copy.") from error

    def get_into(self, key: str, start: int, out: Any) -> None:
        """Fill a writable buffer of bytes with those of a file from `start` on. Raises as `get_ranges`."""
        if self._root is None:
            memoryview(out)[:] = self.get_ranges(key, [start], [start + len(out)], gap=0)[0]
            return
        try:
            self._known(key, lambda: read_into(self.local_path(key), start, out))
        except StorageError as error:
            if self.size(key) >= start + len(out):
                raise
            what = f"The file ends before byte {start + len(out):,}."
            raise SourceError(what, where=self.join(key), fix="Restore it from a copy.") from error

    def _fetch_ranges(self, key: str, starts: Sequence[int], ends: Sequence[int], gap: int) -> list[bytes]:
        spans = find_spans(starts, ends, gap)

        def get(span: tuple[int, int]) -> bytes:
            return self._known(key, lambda: fetch(self.store, key, span))

        if len(spans) < 2:
            found = [get(span) for span in spans]
        else:
            with ThreadPoolExecutor(8) as pool:
                found = list(pool.map(get, spans))
        lows = [low for low, _ in spans]
        parts = []
        for start, end in zip(starts, ends, strict=True):
            at = bisect_right(lows, start) - 1
            parts.append(found[at][start - lows[at] : end - lows[at]] if end > start else b"")
        return parts

    def get_tail(self, key: str, n: int) -> bytes:
        """Return the last `n` bytes of a file, or all of a shorter one; raises as `get`."""
        if self._root is not None:
            return self._known(key, lambda: read_tail(self.local_path(key), n))
        try:
            return self._known(key, lambda: fetch(self.store, key, {"suffix": n}))
        except EmptyFileError:
            return b""

    def size(self, key: str) -> int:
        """Return how many bytes are stored under `key`; raises as `get`."""
        if self._root is not None:
            return self._known(key, lambda: self.local_path(key).stat().st_size)
        return self._known(key, lambda: int(self.store.head(key)["size"]))

    def put(self, key: str, data: bytes) -> None:
        """Write `data` under `key`; a reader sees the old bytes or the new ones, never a part.

        Raises
        ------
        StorageError
            The disk is full, the store refuses or does not answer.
        """
        if self._root is None:
            self._write(key, lambda: self.store.put(key, data))
            return
        for attempt in range(3):
            try:
                self._replace(key, lambda file: file.write(data))
                return
            except StorageError as error:
                if attempt == 2 or not isinstance(error.__cause__, FileNotFoundError):
                    raise

    def put_parts(self, key: str, parts: Iterable[bytes]) -> None:
        """Write buffers one after the other under `key`, in bounded memory. Raises as `put`."""
        if self._root is not None:
            self._replace(key, lambda file: file.writelines(parts))
            return
        # An upload that fails is begun again, and buffers come once.
        with translated(self.join(key)), ScratchFolder() as folder:
            whole = folder / "whole"
            with whole.open("wb") as file:
                file.writelines(parts)
            self.put_file(key, whole)

    def put_file(self, key: str, path: Path) -> None:
        """Copy a local file, of any size, to `key`; a reader sees all of it or none. Raises as `put`."""
        if self._root is None:
            self._write(key, lambda: self.store.put(key, path))
            return
        with path.open("rb") as source:
            self._replace(key, lambda file: shutil.copyfileobj(source, file, 1 << 20))

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write `data` under `key` unless something is there; return whether this call wrote it.

        Atomic between processes on a local disk and, by conditional put, on object stores. An answer that is lost
        leaves open whether a conditional put was done; then what is stored decides, so of several callers that write
        the same bytes more than one may be told that it wrote them.

        Raises
        ------
        StorageError
            The disk is full, the store refuses, or does not answer, so that it is not known what is stored.
        """
        if self._root is None:
            try:
                self._write(key, lambda: self.store.put(key, data, mode="create"))
            except AlreadyExistsError:
                return self.get(key) == data
            return True
        with translated(self.join(key)):
            if (self._root / key).exists():
                return False
            with half_written(self._root / key, lambda file: file.write(data)) as partial:
                try:
                    os.link(partial, self._root / key)
                except FileExistsError:
                    return False
        return True

    def exists(self, key: str) -> bool:
        """Return whether a file is stored under `key`."""
        if self._root is not None:
            with translated(self.join(key)):
                return (self._root / key).is_file()
        try:
            self._ask(key, lambda: self.store.head(key))
        except FileNotFoundError:
            return False
        return True

    def list(self, prefix: str = "") -> list[str]:
        """Return the keys of all files below `prefix`, sorted; of files that are being written nothing is seen."""
        if self._root is None:
            return self._ask(
                prefix, lambda: sorted(item["path"] for page in self.store.list(prefix or None) for item in page)
            )
        folder = self._root / prefix
        found = (path for path in folder.rglob("*") if path.suffix != PARTIAL and path.is_file())
        return sorted(path.relative_to(self._root).as_posix() for path in found) if folder.is_dir() else []

    def delete(self, key: str) -> None:
        """Delete the file under `key`; it is no error if there is none."""
        with suppress(FileNotFoundError):
            if self._root is None:
                self._ask(key, lambda: self.store.delete(key))
                return
            with translated(self.join(key)):
                (self._root / key).unlink()

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
            self._ask(prefix, lambda: self.store.delete(keys))

    def zarr_store(self, key: str, *, read_only: bool = False) -> Any:
        """Return a zarr v3 store rooted at `key`."""
        from zarr.storage import LocalStore as ZarrLocalStore
        from zarr.storage import ObjectStore

        if self._root is not None:
            return ZarrLocalStore(self._root / key, read_only=read_only)
        return ObjectStore(open_store(self.join(key)), read_only=read_only)

    def delta_uri(self, key: str) -> str:
        """Return the URI of a Delta table stored under `key`, creating its folder on a local disk."""
        if self._root is not None:
            (self._root / key).mkdir(parents=True, exist_ok=True)
        return self.join(key)

    def delta_options(self) -> dict[str, str]:
        """Return the storage options that `deltalake` needs beside the environment."""
        patience = {"max_retries": str(RETRIES), "retry_timeout": f"{RETRY_S}s"}
        return patience if self._root is None else {}

    def _ask(self, key: str, ask: Callable[[], T]) -> T:
        return patiently(ask, self.join(key))

    def _replace(self, key: str, write: Callable[[BinaryIO], object]) -> None:
        path = self.local_path(key)
        try:
            with translated(self.join(key)), half_written(path, write) as partial:
                os.replace(partial, path)
        except FileNotFoundError as error:
            raise StorageError(
                "Another process deleted the folder while a file was being written there.",
                where=self.join(key),
                fix="Run again.",
            ) from error

    def _write(self, key: str, ask: Callable[[], object]) -> None:
        try:
            self._ask(key, ask)
        except FileNotFoundError:
            raise no_bucket(self.url) from None

    def _known(self, key: str, ask: Callable[[], T]) -> T:
        """Ask for what should be there."""
        try:
            return self._ask(key, ask)
        except FileNotFoundError:
            raise SourceError("There is no such file.", where=self.join(key), fix="Check the path.") from None
