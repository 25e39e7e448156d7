"""One interface to bytes on a local disk or in an object store (s3, gs, az), through obstore."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, TypeVar
from urllib.parse import unquote, urlparse

from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, from_url

from cellmill.errors import ConfigError, SourceError, StorageError
from cellmill.store_errors import ShortAnswerError, patiently, translated

T = TypeVar("T")
_REMOTE_SCHEMES = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl"})
_PARTIAL = ".partial"
"""How names of files end that are being written, ours and zarr's; nobody but their writer looks at them."""

_RETRIES = 5
_RETRY_S = 60


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
            return self._known(key, lambda: self._fetch(key, {"offset": 0}))
        except _EmptyError:
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
                return self._known(key, lambda: _read_ranges(self.local_path(key), starts, ends))
            return self._fetch_ranges(key, starts, ends, gap)
        except StorageError as error:
            if self.size(key) >= max(ends):
                raise
            what = f"The file ends before byte {max(ends):,}."
            raise SourceError(what, where=self.join(key), fix="Restore it from a copy.") from error

    def _fetch_ranges(self, key: str, starts: Sequence[int], ends: Sequence[int], gap: int) -> list[bytes]:
        spans = _spans(starts, ends, gap)

        def fetch(span: tuple[int, int]) -> bytes:
            return self._known(key, lambda: self._fetch(key, span))

        if len(spans) < 2:
            found = [fetch(span) for span in spans]
        else:
            with ThreadPoolExecutor(8) as pool:
                found = list(pool.map(fetch, spans))
        lows = [low for low, _ in spans]
        parts = []
        for start, end in zip(starts, ends, strict=True):
            at = bisect_right(lows, start) - 1
            parts.append(found[at][start - lows[at] : end - lows[at]] if end > start else b"")
        return parts

    def get_tail(self, key: str, n: int) -> bytes:
        """Return the last `n` bytes of a file, or all of a shorter one; raises as `get`."""
        if self._root is not None:
            return self._known(key, lambda: _read_tail(self.local_path(key), n))
        try:
            return self._known(key, lambda: self._fetch(key, {"suffix": n}))
        except _EmptyError:
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
        with translated(self.join(key)), TemporaryDirectory(prefix="cellmill-") as folder:
            whole = Path(folder) / "whole"
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
            with _half_written(self._root / key, lambda file: file.write(data)) as partial:
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
        found = (path for path in folder.rglob("*") if path.suffix != _PARTIAL and path.is_file())
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
        patience = {"max_retries": str(_RETRIES), "retry_timeout": f"{_RETRY_S}s"}
        return patience if self._root is None else {}

    def _ask(self, key: str, ask: Callable[[], T]) -> T:
        return patiently(ask, self.join(key))

    def _replace(self, key: str, write: Callable[[BinaryIO], object]) -> None:
        path = self.local_path(key)
        try:
            with translated(self.join(key)), _half_written(path, write) as partial:
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
            raise StorageError("There is no such bucket.", where=self.url, fix="Make it, or check its name.") from None

    def _known(self, key: str, ask: Callable[[], T]) -> T:
        """Ask for what should be there."""
        try:
            return self._ask(key, ask)
        except FileNotFoundError:
            raise SourceError("There is no such file.", where=self.join(key), fix="Check the path.") from None

    def _fetch(self, key: str, part: Any) -> bytes:
        """Return a range of a remote file.

        Ranges are asked for even where all is wanted: the answer then says which bytes it should hold, so that one
        that is cut short is seen.
        """
        try:
            found = self.store.get(key, options={"range": part})
            content = bytes(found.bytes())
        except BaseError as error:
            # No range of an empty file can be satisfied.
            if isinstance(part, dict) and _NO_RANGE.search(str(error)) and not int(self.store.head(key)["size"]):
                raise _EmptyError from error
            raise
        first, last = found.range
        wanted = part[1] - part[0] if isinstance(part, tuple) else last - first
        if len(content) != last - first or len(content) != wanted:
            raise ShortAnswerError(f"{len(content):,} bytes came of {wanted:,}")
        return content


class _EmptyError(Exception):
    """The file has no bytes."""


_NO_RANGE = re.compile(r"416 Range Not Satisfiable|non-partial response")


def open_store(url: str) -> Any:
    """Return the obstore store of a URL, with bounded patience.

    One request is tried again a few times with growing pauses where the server is in trouble or the connection breaks.
    """
    # Options given here replace those of the environment, of which only this one is in use.
    plain = any(
        os.environ.get(f"{kind}_ALLOW_HTTP", "").lower() in ("1", "true") for kind in ("AWS", "AZURE", "GOOGLE")
    )
    return from_url(
        url,
        retry_config={
            "max_retries": _RETRIES,
            "retry_timeout": timedelta(seconds=_RETRY_S),
            "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=5)},
        },
        client_options={"timeout": "600s", "read_timeout": "30s", "connect_timeout": "10s", "allow_http": plain},
    )


@contextmanager
def _half_written(path: Path, write: Callable[[BinaryIO], object]) -> Iterator[Path]:
    """Write a file beside `path`, for the block to put in place."""
    partial = path.with_name(f"{path.name}.{secrets.token_hex(8)}{_PARTIAL}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with partial.open("xb") as file:
            write(file)
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def _read_ranges(path: Path, starts: Sequence[int], ends: Sequence[int]) -> list[bytes]:
    found = []
    with path.open("rb") as file:
        for start, end in zip(starts, ends, strict=True):
            found.append(os.pread(file.fileno(), end - start, start) if end > start else b"")
            if len(found[-1]) != end - start:
                raise OSError(f"the file ends before byte {end:,}")
    return found


def _read_tail(path: Path, n: int) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - n))
        return file.read()


def _spans(starts: Sequence[int], ends: Sequence[int], gap: int) -> list[tuple[int, int]]:
    """Return ranges, those near to each other as one; empty ones are left out."""
    spans: list[tuple[int, int]] = []
    for start, end in sorted((start, end) for start, end in zip(starts, ends, strict=True) if end > start):
        if spans and start - spans[-1][1] <= gap:
            spans[-1] = (spans[-1][0], max(spans[-1][1], end))
        else:
            spans.append((start, end))
    return spans
