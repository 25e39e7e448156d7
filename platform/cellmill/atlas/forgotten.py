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


class Held(Config):
    """What a snapshot held of the cells of a withdrawal, of one source.

    Attributes
    ----------
    withdrawal
        Its number.
    dataset, source_digest
        The source.
    told, known
        Cells that fulfilled the predicate, and cells that did not and were known to be the same as such cells.
    of
        Cells of the source in all. None of these numbers counts hidden duplicates.
    """

    withdrawal: int
    dataset: str
    source_digest: str
    told: int
    known: int
    of: int


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
    told
        Numbers of the withdrawals, lifted ones included, for which it was looked what the snapshot held.
    held
        What it held of their cells; sources without any are left out.
    """

    version: int
    time: str
    reason: str
    told: tuple[int, ...] = ()
    held: tuple[Held, ...] = ()


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


def find_forgotten(storage: Storage, version: int) -> Forgotten | None:
    """Return the record of a snapshot if it is forgotten.

    Raises
    ------
    IntegrityError
        It is damaged.
    """
    return read_record(storage, _key(version), Forgotten)


def check_known(storage: Storage, version: int) -> None:
    """Refuse a snapshot that is forgotten.

    Raises
    ------
    AtlasError
        It is; says when and why.
    """
    record = find_forgotten(storage, version)
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
