"""Remote files on this machine's disk: fetched once, named by content, the least recently used given up first."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cellmill.console import progress
from cellmill.digest import digest_of_file
from cellmill.errors import ConfigError, DownloadError, ResourceError
from cellmill.ingestion.datasets.fetching import cache_folder
from cellmill.ingestion.sources.remote import ATTEMPTS, Facts, RemoteFile, bare, patient, short

_DEFAULT_GB = 100.0


def fetch(remote: RemoteFile, facts: Facts) -> Path:
    """Return a path with a remote file's content, whose name is its digest; downloaded unless it is in the cache.

    The cache is ``$CELLMILL_CACHE/sources`` and holds ``$CELLMILL_CACHE_GB`` (100 by default) at most, or one file if
    that is larger. Processes of one machine that want the same file wait for one of them to fetch it. A download that
    was cut off goes on where it stopped.

    Parameters
    ----------
    remote
        The file.
    facts
        What its store says of it now.

    Raises
    ------
    DownloadError
        It cannot be fetched.
    ResourceError
        The disk is too small for it.
    """
    root = cache_folder() / "sources"
    try:
        for name in ("files", "index", "partial", "locks"):
            (root / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DownloadError(
            f"The cache cannot be written: {error.strerror}.",
            where=str(root),
            fix="Set CELLMILL_CACHE to a folder that can be written.",
        ) from error
    key = _key(remote, facts)
    with _locked(root / "locks" / key):
        found = _known(root, key) if facts.tag else None
        if found is None:
            found = _download(remote, facts, root, key)
        os.utime(found)
    _shrink(root, keep=found)
    return found


def cache_limit() -> float:
    """Return how many bytes each kind of thing in the cache may take.

    Raises
    ------
    ConfigError
        ``$CELLMILL_CACHE_GB`` is no number.
    """
    text = os.environ.get("CELLMILL_CACHE_GB") or str(_DEFAULT_GB)
    try:
        return float(text) * 1e9
    except ValueError:
        raise ConfigError(f"{text!r} is no number.", where="CELLMILL_CACHE_GB", fix="Give gigabytes.") from None


def cached(remote: RemoteFile, facts: Facts) -> Path | None:
    """Return the path of a remote file in the cache, None if it is not there or may have changed."""
    return _known(cache_folder() / "sources", _key(remote, facts)) if facts.tag else None


def forget(path: Path) -> None:
    """Give up a file whose content is not what its name says."""
    path.unlink(missing_ok=True)


def _key(remote: RemoteFile, facts: Facts) -> str:
    return hashlib.sha256(f"{remote.url}\0{facts.tag}\0{facts.size}".encode()).hexdigest()


def _known(root: Path, key: str) -> Path | None:
    record = root / "index" / key
    if not record.is_file():
        return None
    try:
        known = json.loads(record.read_text())
        path, size = root / "files" / known["digest"], known["size"]
    except (ValueError, LookupError, TypeError):
        # A record that does not read is none: a machine that lost power may leave such.
        return None
    return path if path.is_file() and path.stat().st_size == size else None


def _download(remote: RemoteFile, facts: Facts, root: Path, key: str) -> Path:
    partial = root / "partial" / key
    if not facts.tag:
        # Nothing says that what is there belongs to the same content.
        partial.unlink(missing_ok=True)
    _check_space(remote, facts, root)
    try:
        patient(lambda: _append(remote, facts, partial))
    except OSError as error:
        raise DownloadError(
            f"The download failed {ATTEMPTS} times: {short(error)}",
            where=bare(remote.url),
            fix="Check the network and run again: it goes on where it stopped.",
        ) from error
    with progress(partial.stat().st_size, f"digesting {_name(remote)}", "bytes") as advance:
        digest = digest_of_file(partial, advance)
    target = root / "files" / digest
    size = partial.stat().st_size
    os.replace(partial, target)
    record = root / "index" / key
    fresh = record.with_name(f"{key}.{os.getpid()}")
    fresh.write_text(json.dumps({"digest": digest, "size": size, "url": bare(remote.url)}))
    os.replace(fresh, record)
    return target


def _append(remote: RemoteFile, facts: Facts, partial: Path) -> None:
    """Fetch what is missing of a file."""
    start = partial.stat().st_size if partial.exists() else 0
    if facts.size is not None and start > facts.size:
        start = 0
    with (
        partial.open("ab") as sink,
        progress(facts.size, f"fetching {_name(remote)}", unit="bytes", done=start) as advance,
    ):
        sink.truncate(start)
        if facts.size is None or start < facts.size:
            for position, block in remote.blocks(start, facts):
                if position != sink.tell():
                    sink.truncate(position)
                    sink.seek(position)
                sink.write(block)
                advance(len(block))
        received = sink.tell()
    if facts.size is not None and received != facts.size:
        raise OSError(f"the connection ended after {received:,} of {facts.size:,} bytes")


def _name(remote: RemoteFile) -> str:
    return bare(remote.url).partition("?")[0].rstrip("/").rpartition("/")[2]


def _check_space(remote: RemoteFile, facts: Facts, root: Path) -> None:
    free = shutil.disk_usage(root).free
    if facts.size is not None and facts.size > free:
        raise ResourceError(
            f"The file has {facts.size / 1e9:,.1f} GB, the disk {free / 1e9:,.1f} GB free.",
            where=f"{bare(remote.url)} to {root}",
            fix="Free space, or set CELLMILL_CACHE to a folder on a larger disk.",
        )


def _shrink(root: Path, keep: Path) -> None:
    """Delete the files that were not used for longest, until the rest fits."""
    limit = cache_limit()
    found = []
    for path in (root / "files").iterdir():
        try:
            found.append((path.stat().st_mtime, path.stat().st_size, path))
        except FileNotFoundError:
            continue
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= limit:
            return
        if path != keep:
            # Who has it open keeps it; who comes later fetches it again.
            path.unlink(missing_ok=True)
            total -= size


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
