"""Withdrawals that hold: which rows of a shard each of them takes, by its predicate and by whose rows they are."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cellmill.atlas.cell_marks import SCHEMA, identities
from cellmill.atlas.cells import CATALOG, FIXED, CellsFile
from cellmill.atlas.delta_log import Noted
from cellmill.atlas.entry import ShardEntry
from cellmill.atlas.matching import mask_of
from cellmill.atlas.predicate import Predicate
from cellmill.atlas.pruning import decide
from cellmill.atlas.record import encode
from cellmill.atlas.summary import facts
from cellmill.atlas.taken import Taken, read_taken, write_taken
from cellmill.atlas.withdrawals import Withdrawal, all_withdrawals, read_predicate
from cellmill.errors import IntegrityError
from cellmill.storage import Storage

Mask = npt.NDArray[np.bool_]
Each = Callable[[Callable[[ShardEntry], list[pa.Table]], Sequence[ShardEntry]], Iterable[list[pa.Table]]]
_THREADS = 16


class Gone(NamedTuple):
    """Rows of a shard that a withdrawal takes: bool [n_rows] each.

    Attributes
    ----------
    told
        Those that fulfil its predicate.
    known
        Those that do not, and are cells that it took before.
    """

    told: Mask
    known: Mask

    @property
    def either(self) -> Mask:
        """All of them."""
        return self.told | self.known


@dataclass(frozen=True)
class Standing:
    """A withdrawal that holds.

    Attributes
    ----------
    withdrawal
        What is withdrawn.
    taken
        The cells that it took so far.
    name
        Of the file that has these, empty for none.
    """

    withdrawal: Withdrawal
    taken: Taken
    name: str = ""

    @property
    def number(self) -> int:
        """Of the withdrawal."""
        return self.withdrawal.number

    def rows(self, storage: Storage, entry: ShardEntry) -> Gone:
        """Return which rows of a shard are withdrawn, hidden ones included.

        Raises
        ------
        ConfigError
            The predicate cannot be applied to the shard's columns.
        """
        told = fulfilling(read_predicate(self.withdrawal.where), storage, entry)
        return Gone(told, self.taken.rows_of(storage, entry, told_by(self.withdrawal)) & ~told)

    def identities(self, storage: Storage, entry: ShardEntry, rows: Mask) -> pa.Table:
        """Return what is to be remembered of rows of a shard, so that they are known when their columns change."""
        return identities(storage, entry, rows, by_counts=by_counts(self.withdrawal))

    def noted(self, storage: Storage) -> Noted:
        """Write down the cells that were taken, and return what the commit says of the withdrawal."""
        name = write_taken(storage, self.number, self.taken) if self.taken.has_grown else self.name
        return Noted(digest_of(self.withdrawal), name)


def standing(storage: Storage, ledger: Mapping[int, Noted], *, lifted: bool = False) -> list[Standing]:
    """Return the withdrawals that hold, by number, each as it was made.

    Parameters
    ----------
    storage
        The atlas's storage.
    ledger
        What the commit of the newest snapshot says of withdrawals.
    lifted
        Return also those that were lifted.

    Raises
    ------
    IntegrityError
        What is written of one is lost, damaged, or not what it was when it was made.
    """
    records = all_withdrawals(storage)
    there = {withdrawal.number: withdrawal for withdrawal, _ in records}
    for number, noted in sorted(ledger.items()):
        where = storage.join("withdrawals")
        if number not in there:
            raise lost(storage, number)
        if digest_of(there[number]) != noted.record:
            raise IntegrityError(
                f"Withdrawal {number} is not what it was when it was made: it says {there[number].where!r} now.",
                where=f"{where}/{number:04d}.json",
                fix="Restore the file from a copy of the atlas.",
            )
    wanted = [withdrawal for withdrawal, lift in records if lifted or lift is None]
    names = [ledger[one.number].cells if one.number in ledger else "" for one in wanted]
    with ThreadPoolExecutor(_THREADS) as pool:
        taken = pool.map(lambda pair: read_taken(storage, pair[0].number, pair[1]), zip(wanted, names, strict=True))
        return [Standing(one, cells, name) for one, cells, name in zip(wanted, taken, names, strict=True)]


def remember(
    storage: Storage, withdrawals: Sequence[Standing], entries: Sequence[ShardEntry], each: Each = map
) -> None:
    """Let withdrawals remember what they take from shards, until these have no cell more that is the same as one.

    Parameters
    ----------
    storage
        The atlas's storage.
    withdrawals
        What takes the cells.
    entries
        The shards.
    each
        Applies a function to all shards, in order; it may do so for several at a time.
    """

    def look(entry: ShardEntry) -> list[pa.Table]:
        found = []
        for one in withdrawals:
            rows = one.rows(storage, entry).either
            found.append(one.identities(storage, entry, rows) if rows.any() else SCHEMA.empty_table())
        return found

    growing = bool(withdrawals)
    while growing:
        tables = list(zip(*each(look, entries), strict=True))
        grown = [one.taken.add(pa.concat_tables(some)) for one, some in zip(withdrawals, tables, strict=False)]
        growing = any(grown)


def fulfilling(predicate: Predicate, storage: Storage, entry: ShardEntry) -> Mask:
    """Return which rows of a shard fulfil a predicate that cells can be withdrawn by: bool [n_rows].

    Raises
    ------
    ConfigError
        It cannot be applied to the shard's columns.
    """
    answer = decide(predicate, facts(entry, predicate.columns))
    if answer is None:
        return mask_of(predicate, storage, entry, CellsFile(storage, entry).read(predicate.columns))
    return np.full(entry.n_rows, answer)


def by_counts(withdrawal: Withdrawal) -> bool:
    """Return whether cells are also known by their counts: where configurations decide what a column is."""
    return bool(told_by(withdrawal))


def told_by(withdrawal: Withdrawal) -> list[str]:
    """Return the columns of obs that the predicate of a withdrawal names."""
    own = {*FIXED.names, *CATALOG}
    return [name for name in read_predicate(withdrawal.where).columns if name not in own]


def digest_of(withdrawal: Withdrawal) -> str:
    """Return the sha256 of the record as it is stored."""
    return hashlib.sha256(encode(withdrawal)).hexdigest()


def lost(storage: Storage, number: int) -> IntegrityError:
    """Return the error that says that the record of a withdrawal is gone."""
    return IntegrityError(
        f"Withdrawal {number} was made, and what it withdraws is lost: cells of it could come back.",
        where=storage.join("withdrawals"),
        fix="Restore the file from a copy of the atlas.",
    )
