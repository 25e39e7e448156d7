"""Withdrawals: predicates whose cells no snapshot may show any more, now or after a later ingestion.

``withdrawals/NNNN.json`` is written once, before cells are removed; ``NNNN.lifted.json`` beside it lifts it, and
``NNNN/<digest>.parquet`` says which cells it took, see `cellmill.atlas.taken`. Every commit names the digests of all
records and the files of taken cells, so that none is changed or lost unnoticed. Every commit that adds cells looks here
after it knows which snapshot it builds on, and every removal makes a commit, so of a removal and an ingestion that run
at once the later one always sees the other.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable

from cellmill.atlas.entry import ShardEntry
from cellmill.atlas.part import Part
from cellmill.atlas.predicate import KINDS, Predicate, parse
from cellmill.atlas.record import encode, read_record, read_records
from cellmill.config import Config
from cellmill.errors import AtlasError, ConfigError
from cellmill.storage import Storage

_FOLDER = "withdrawals"
_NAME = re.compile(rf"{_FOLDER}/(\d+)\.json")
_WHOLE = "withdrawn"


class Withdrawal(Config):
    """A predicate whose cells are withdrawn.

    Attributes
    ----------
    number
        Counted from 1.
    where
        The predicate.
    reason
        Why.
    time
        UTC, ISO 8601.
    """

    number: int
    where: str
    reason: str
    time: str


class Lift(Config):
    """That a withdrawal no longer holds."""

    number: int
    reason: str
    time: str


class WhollyWithdrawn(Config):
    """A shard that would be there but for withdrawals, which took all of its cells."""

    withdrawals: tuple[int, ...]


def all_withdrawals(storage: Storage) -> list[tuple[Withdrawal, Lift | None]]:
    """Return all withdrawals by number, and what lifted them.

    Raises
    ------
    IntegrityError
        A record is damaged.
    """
    found = []
    for number in sorted(int(name[1]) for key in storage.list(_FOLDER) if (name := _NAME.fullmatch(key))):
        withdrawal = read_record(storage, _key(number), Withdrawal)
        if withdrawal is not None:
            found.append((withdrawal, read_record(storage, _lifted_key(number), Lift)))
    return found


def wholly_withdrawn(storage: Storage) -> list[WhollyWithdrawn]:
    """Return what was written down of shards of which nothing is left.

    Raises
    ------
    IntegrityError
        A record is damaged.
    """
    return read_records(storage, _WHOLE, WhollyWithdrawn)


def active_withdrawals(storage: Storage) -> list[Withdrawal]:
    """Return the withdrawals that hold, by number."""
    return [withdrawal for withdrawal, lift in all_withdrawals(storage) if lift is None]


def record_withdrawal(storage: Storage, where: str, reason: str) -> Withdrawal:
    """Write a withdrawal down and return it; one with this predicate that holds already is returned instead."""
    while True:
        there = all_withdrawals(storage)
        for withdrawal, lift in there:
            if lift is None and withdrawal.where == where:
                return withdrawal
        number = there[-1][0].number + 1 if there else 1
        new = Withdrawal(number=number, where=where, reason=reason, time=_now())
        if storage.put_if_absent(_key(number), encode(new)):
            return new


def lift(storage: Storage, number: int, reason: str) -> Withdrawal:
    """Lift a withdrawal: its cells come back when their source is ingested again.

    Raises
    ------
    AtlasError
        There is no such withdrawal, or it was lifted.
    """
    withdrawal = read_record(storage, _key(number), Withdrawal)
    if withdrawal is None:
        raise AtlasError(f"There is no withdrawal {number}.", where=storage.url, fix="See `cellmill atlas show`.")
    if not storage.put_if_absent(_lifted_key(number), encode(Lift(number=number, reason=reason, time=_now()))):
        raise AtlasError(f"Withdrawal {number} was lifted already.", where=storage.url)
    return withdrawal


def read_predicate(where: str) -> Predicate:
    """Return a predicate that cells can be withdrawn by.

    Raises
    ------
    ConfigError
        It is not well-formed, or speaks of what is not a property of the cell itself.
    """
    predicate = parse(where)
    if not predicate.columns or {"is_duplicate", "row", "shard"} & set(predicate.columns):
        raise ConfigError(
            "Cells are withdrawn by what they are, not by where they lie.",
            where=where,
            fix="For instance: donor_id = 'D7', or dataset = 'kang18' and batch in ['b1', 'b2'].",
        )
    # Donors are numbers in one data set and text in the next, which may be yet to come: a withdrawal holds for both.
    return predicate.over(dict.fromkeys(predicate.columns, KINDS))


def is_current(part: ShardEntry | Part, active: set[int]) -> bool:
    """Return whether a shard, or a part of one, has all cells that it may have: no withdrawal of it was lifted."""
    return {int(number) for number in part.withdrawals.split(",") if number} <= active


def mark_wholly_withdrawn(storage: Storage, planned: tuple[str, str], numbers: Iterable[int]) -> None:
    """Write down that nothing is left of a shard, so that the next ingestion does not read its source again.

    Parameters
    ----------
    storage
        The atlas's storage.
    planned
        Data set and digest of the shard, as an ingestion plans it; or of the configuration, where the cells of a source
        were in compacted shards.
    numbers
        The withdrawals that took its cells.
    """
    storage.put(_whole_key(*planned), encode(WhollyWithdrawn(withdrawals=tuple(sorted(numbers)))))


def is_wholly_withdrawn(storage: Storage, planned: tuple[str, str], active: set[int]) -> bool:
    """Return whether nothing is left of a shard, or of a source, by withdrawals that still hold."""
    if not active:
        return False
    record = read_record(storage, _whole_key(*planned), WhollyWithdrawn)
    return record is not None and set(record.withdrawals) <= active


def _key(number: int) -> str:
    return f"{_FOLDER}/{number:04d}.json"


def _lifted_key(number: int) -> str:
    return f"{_FOLDER}/{number:04d}.lifted.json"


def _whole_key(dataset: str, digest: str) -> str:
    return f"{_WHOLE}/{dataset}/{digest}.json"


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
