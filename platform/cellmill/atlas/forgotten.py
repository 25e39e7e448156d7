"""Forgotten snapshots: their numbers stay, their cells may be gone."""

from __future__ import annotations

import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from cellmill.atlas.record import encode, read_record
from cellmill.config import Config
from cellmill.errors import AtlasError
from cellmill.storage import Storage

_FOLDER = "forgotten"
_THREADS = 16
_NAME = re.compile(rf"{_FOLDER}/(\d+)\.json")


class Forgotten(Config):
    """A snapshot that a garbage collection was asked to forget.

    Attributes
    ----------
    version
        The snapshot.
    time
        When, UTC, ISO 8601.
    reason
        Why.
    """

    version: int
    time: str
    reason: str


def forgotten_versions(storage: Storage) -> set[int]:
    """Return the numbers of all snapshots that are forgotten."""
    return {int(found[1]) for key in storage.list(_FOLDER) if (found := _NAME.fullmatch(key))}


def all_forgotten(storage: Storage) -> list[Forgotten]:
    """Return all records of forgotten snapshots, by number.

    Raises
    ------
    IntegrityError
        One is damaged.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(
            lambda version: read_record(storage, _key(version), Forgotten), sorted(forgotten_versions(storage))
        )
        return [record for record in found if record is not None]


def check_known(storage: Storage, version: int) -> None:
    """Refuse a snapshot that is forgotten.

    Raises
    ------
    AtlasError
        It is; says when and why.
    """
    record = read_record(storage, _key(version), Forgotten)
    if record is not None:
        raise AtlasError(
            f"Snapshot {version} was forgotten at {record.time}: {record.reason}.",
            where=storage.url,
            fix="`cellmill atlas log` lists the snapshots that can be read.",
        )


def mark(storage: Storage, records: Iterable[Forgotten]) -> None:
    """Mark snapshots as forgotten."""
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(lambda record: storage.put_if_absent(_key(record.version), encode(record)), records))


def unmark(storage: Storage, version: int) -> None:
    """Take a mark back, before anything was deleted."""
    storage.delete(_key(version))


def _key(version: int) -> str:
    return f"{_FOLDER}/{version:012d}.json"
