"""Parts of remote files on this machine's disk: a folder of bounded size that processes share.

What is kept is named by the content that it belongs to, so it never is out of date; each file carries its checksum, and
one that does not have it counts as absent. The least recently used is given up first. Whether what came is what was
written is known to those who read it: they tell when it is not, so that it is forgotten and asked for once more.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TextIO

import google_crc32c

from cellmill.errors import ConfigError
from cellmill.storage import Storage

_TARGET = 0.9
"""How full the folder is after it was looked over."""
_TOUCH_S = 60.0


class RangeCache:
    """The folder.

    Its file ``lock`` says how many bytes may be there: no fewer than are, since whoever adds a file adds to the number
    first. Only when that reaches the bound the folder is looked over. Names come and go while ``lock`` is held.

    Parameters
    ----------
    folder
        Where it is; made if need be.
    limit
        Bytes that it may hold.

    Raises
    ------
    ConfigError
        The folder cannot be written.
    """

    def __init__(self, folder: Path, limit: float) -> None:
        self._folder, self._limit = folder, limit
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"The cache cannot be written: {error.strerror}.",
                where=str(folder),
                fix="Set CELLMILL_CACHE to a folder that can be written, or stream.cache_gb to 0.",
            ) from error

    def get(self, file: str, part: str) -> bytes | None:
        """Return what is kept of a file under the name of a part, None if it is not there or damaged."""
        path = self._path(file, part)
        try:
            content = path.read_bytes()
            if time.time() - path.stat().st_mtime > _TOUCH_S:
                os.utime(path)
        except OSError:
            return None
        body = content[:-4]
        if len(content) < 4 or google_crc32c.value(body) != int.from_bytes(content[-4:], "little"):
            return None
        return body

    def put(self, file: str, part: str, body: bytes) -> None:
        """Keep a part of a file; a disk that is full is no error."""
        path = self._path(file, part)
        size = len(body) + 4
        if size > self._limit * (1 - _TARGET):
            return
        with suppress(OSError):
            path.parent.mkdir(exist_ok=True)
            draft = self._reserve(path.parent, size)
            try:
                with draft.open("r+b") as out:
                    out.write(body)
                    out.write(google_crc32c.value(body).to_bytes(4, "little"))
                with self._locked():
                    os.replace(draft, path)
            except OSError:
                draft.unlink(missing_ok=True)
                raise

    def forget(self, file: str) -> None:
        """Keep nothing of a file."""
        begin = self._path(file, "").name.partition("-")[0]
        with suppress(OSError), self._locked():
            for item in os.scandir(self._folder / begin[:2]):
                if item.name.startswith(begin):
                    Path(item.path).unlink(missing_ok=True)

    def _path(self, file: str, part: str) -> Path:
        of, what = (hashlib.sha256(text.encode()).hexdigest()[:32] for text in (file, part))
        return self._folder / of[:2] / f"{of}-{what}"

    def _reserve(self, folder: Path, size: int) -> Path:
        """Return a file of so many bytes, for which room was made."""
        with self._locked() as lock:
            lock.seek(0)
            told = lock.read()
            total = int(told) if told.isdecimal() else None
            if total is None or total + size > self._limit:
                total = self._shrink()
            lock.truncate(0)
            lock.write(str(total + size))
            lock.flush()
            # It has its size at once, so that it counts while it is being written.
            handle, draft = tempfile.mkstemp(dir=folder, suffix=".partial")
            with os.fdopen(handle, "wb") as file:
                file.truncate(size)
        return Path(draft)

    @contextmanager
    def _locked(self) -> Iterator[TextIO]:
        with (self._folder / "lock").open("a+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield lock

    def _shrink(self) -> int:
        """Give up what was not used for longest; return how many bytes are left."""
        found = []
        for folder in os.scandir(self._folder):
            if not folder.is_dir():
                continue
            for item in os.scandir(folder.path):
                with suppress(FileNotFoundError):
                    facts = item.stat()
                    found.append((facts.st_mtime, facts.st_size, item.path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self._limit * _TARGET:
                break
            Path(path).unlink(missing_ok=True)
            total -= size
        return total


class CachedStorage(Storage):
    """A storage of which parts that were read stay on this machine's disk, unless they lie there anyway.

    The folder is ``$CELLMILL_CACHE/stream``.

    Parameters
    ----------
    url
        Of the storage.
    gigabytes
        Bound of the folder, over all storages and processes of this machine.
    content
        Names the content of the files, so that files that are replaced under the same keys are not mistaken.
    past
        Whether to ask the store for everything, and keep it.
    """

    def __init__(self, url: str, gigabytes: float, content: str = "", past: bool = False) -> None:
        super().__init__(url)
        self._gigabytes, self._content, self._past = gigabytes, content, past
        self._files: set[str] = set()

    def __reduce__(self) -> tuple[object, ...]:
        return (CachedStorage, (self.url, self._gigabytes, self._content, self._past))

    def beside(self, url: str, content: str = "") -> CachedStorage:
        """Return the storage at another URL with the same cache; what is read there, `forget` forgets too."""
        found = CachedStorage(url, self._gigabytes, content, self._past)
        found._files = self._files
        return found

    def holding(self, content: str) -> CachedStorage:
        """Return the storage for files of some content, with the same cache."""
        return CachedStorage(self.url, self._gigabytes, content, self._past)

    def forget(self) -> None:
        """Keep nothing of the files that were read: they are not what was written."""
        for file in list(self._files):
            self._cache.forget(file)

    def anew(self) -> CachedStorage:
        """Return the storage without what is kept: all is asked of the store, and kept then."""
        found = CachedStorage(self.url, self._gigabytes, self._content, past=True)
        found._files = self._files
        return found

    def get(self, key: str) -> bytes:
        """Return a whole file; raises as `Storage.get`."""
        return self._kept(key, "whole", partial(super().get, key))

    def get_tail(self, key: str, n: int) -> bytes:
        """Return the end of a file; raises as `Storage.get_tail`."""
        return self._kept(key, f"last {n}", partial(super().get_tail, key, n))

    def size(self, key: str) -> int:
        """Return the size of a file; raises as `Storage.size`."""
        size = super().size
        return int(self._kept(key, "size", lambda: str(size(key)).encode()))

    def get_ranges(self, key: str, starts: Sequence[int], ends: Sequence[int], gap: int = 1 << 20) -> list[bytes]:
        """Return parts of a file, those that are not at hand fetched together; raises as `Storage.get_ranges`."""
        if self.is_local:
            return super().get_ranges(key, starts, ends, gap)
        file, names = self._file(key), [f"{start} {end}" for start, end in zip(starts, ends, strict=True)]
        found = [self._at_hand(file, name) for name in names]
        missing = [i for i, part in enumerate(found) if part is None]
        if missing:
            parts = super().get_ranges(key, [starts[i] for i in missing], [ends[i] for i in missing], gap)
            for i, part in zip(missing, parts, strict=True):
                found[i] = part
                self._cache.put(file, names[i], part)
        return [part for part in found if part is not None]

    @cached_property
    def _cache(self) -> RangeCache:
        root = os.environ.get("CELLMILL_CACHE") or Path.home() / ".cache" / "cellmill"
        return _shared(Path(root).expanduser() / "stream", self._gigabytes * 1e9)

    def _file(self, key: str) -> str:
        file = f"{self._content or self.url} {key}"
        self._files.add(file)
        return file

    def _at_hand(self, file: str, part: str) -> bytes | None:
        return None if self._past else self._cache.get(file, part)

    def _kept(self, key: str, part: str, fetch: Callable[[], bytes]) -> bytes:
        if self.is_local:
            return fetch()
        file = self._file(key)
        content = self._at_hand(file, part)
        if content is None:
            content = fetch()
            self._cache.put(file, part, content)
        return content


@cache
def _shared(folder: Path, limit: float) -> RangeCache:
    """Return the one object of this process for a folder, which is made but once."""
    return RangeCache(folder, limit)
