"""Withdrawing cells: a new snapshot in which the shards that had them are written again without them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cellmill.atlas.catalog import Change
from cellmill.atlas.cell_keys import shard_keys
from cellmill.atlas.cell_marks import SCHEMA
from cellmill.atlas.clean_runs import with_clean_runs
from cellmill.atlas.entry import ShardEntry
from cellmill.atlas.hash_index import HashIndex
from cellmill.atlas.history import readable_shards
from cellmill.atlas.overlay import read_overlay
from cellmill.atlas.part import Part, encode_parts, joined
from cellmill.atlas.part_rows import count_parts
from cellmill.atlas.predicate import parse
from cellmill.atlas.purging import purge
from cellmill.atlas.rewriting import without_rows
from cellmill.atlas.snapshot import Snapshot
from cellmill.atlas.standing import Gone, Standing, fulfilling, remember
from cellmill.atlas.taken import Taken
from cellmill.atlas.unhiding import NEARLY_EMPTY, show_again
from cellmill.atlas.unmarking import firsts, unmark
from cellmill.atlas.withdrawals import Withdrawal, mark_wholly_withdrawn, read_predicate, record_withdrawal
from cellmill.config import Config
from cellmill.errors import AtlasError
from cellmill.genes import Vocabulary
from cellmill.storage import Storage

if TYPE_CHECKING:
    from cellmill.atlas.atlas import Atlas

U64 = npt.NDArray[np.uint64]


class Removal(Config):
    """What a withdrawal did, or would do.

    Attributes
    ----------
    number
        Of the withdrawal; 0 where none was made.
    where, reason
        As they were given.
    snapshot
        The snapshot without the cells; for a trial the one that was looked at.
    cells
        Cells that are gone, by data set.
    known
        Those of them that do not fulfil the predicate: another snapshot has the same cells with values that do.
    rewritten, dropped
        Shards that were written again, and shards that had no other cells.
    shown_again
        Cells that were hidden as duplicates of cells that are gone.
    """

    number: int
    where: str
    reason: str
    snapshot: int
    cells: dict[str, int]
    known: int
    rewritten: int
    dropped: int
    shown_again: int


def remove(atlas: Atlas, where: str, reason: str, *, dry_run: bool = False) -> Removal:
    """Withdraw the cells that fulfil a predicate, from the newest snapshot and from all later ingestions.

    Shards are written again without them, and so are the runs of hashes that had theirs. Which cells these were is
    kept, see `cellmill.atlas.taken`: they stay away when their columns say something else one day. Cells that fulfil
    the predicate in any snapshot that is not forgotten count. Older snapshots keep the cells until a garbage collection
    forgets these. A removal that was cut off is finished by calling this again.

    Parameters
    ----------
    atlas
        The atlas.
    where
        A predicate over what cells are, see `cellmill.atlas.predicate`.
    reason
        For the record.
    dry_run
        Count, and change nothing.

    Raises
    ------
    ConfigError
        The predicate is not well-formed, no snapshot that is not forgotten has such a column, or its values are of
        another kind.
    """
    where = where.strip()
    predicate = read_predicate(where)
    newest = atlas.snapshot()
    predicate.check(_columns(atlas, newest, predicate.columns))
    # What cannot be applied must not be written down.
    newest.matching(parse(where))
    withdrawal = Withdrawal(number=0, where=where, reason=reason, time="")
    if not dry_run:
        withdrawal = record_withdrawal(atlas.storage, where, reason)
    known = _fulfilling(atlas, newest, withdrawal)
    if dry_run:
        return _Plan(atlas, newest, known, None).removal(newest.version)
    vocabulary = atlas.vocabulary()
    made: list[_Plan] = []

    def plan(snapshot: Snapshot) -> Change:
        made.append(_Plan(atlas, snapshot, _and_before(atlas, snapshot, known), vocabulary))
        return made[-1].change()

    version, _ = atlas.update(plan)
    made[-1].amend_reports()
    purge(atlas, (entry.key for lost in made[:-1] for entry in lost.rewritten))
    return made[-1].removal(version)


def without_withdrawn(
    storage: Storage, vocabulary: Vocabulary, entries: Sequence[ShardEntry], withdrawals: Sequence[Standing]
) -> tuple[list[ShardEntry], dict[str, Counter[str]]]:
    """Return shards that are about to be committed without their withdrawn cells, which the withdrawals remember.

    Returns
    -------
    tuple
        The shards, written again where need be, those without any cell left out; and by the digest of the
        configuration how many cells were left out for which reason.
    """
    found: list[ShardEntry] = []
    counts: dict[str, Counter[str]] = {}
    remember(storage, withdrawals, entries)
    for entry in entries:
        gone = np.zeros(entry.n_rows, bool)
        numbers = []
        for one in withdrawals:
            rows = one.rows(storage, entry)
            if (rows.either & ~gone).any():
                numbers.append(one.number)
                counted = counts.setdefault(entry.config_digest, Counter())
                for reason, some in _reasons(one.number, rows):
                    counted[reason] += int((some & ~gone).sum())
                gone |= rows.either
        if gone.all():
            mark_wholly_withdrawn(storage, entry.planned, numbers)
        else:
            found.append(without_rows(storage, vocabulary, entry, gone, numbers) if numbers else entry)
    return found, counts


class _Plan:
    """A removal from one snapshot. Without a vocabulary nothing is written."""

    def __init__(self, atlas: Atlas, snapshot: Snapshot, standing: Standing, vocabulary: Vocabulary | None) -> None:
        self._atlas, self._snapshot, self._standing = atlas, snapshot, standing
        self._withdrawal = standing.withdrawal
        storage = atlas.storage
        self._cells: Counter[tuple[str, str]] = Counter()
        self._reasons: dict[tuple[str, str], Counter[str]] = {}
        self._touched: list[ShardEntry] = []
        self.rewritten: list[ShardEntry] = []
        self._dropped = 0
        self._shown_again = 0
        self._removed: list[U64] = []
        self._firsts: list[U64] = []
        self._lost: dict[tuple[str, str], Part] = {}
        """Parts of compacted shards that lose cells, by what an ingestion plans."""
        remember(storage, [standing], snapshot.shards, snapshot.stream)
        masks = snapshot.stream(lambda entry: standing.rows(storage, entry), snapshot.shards)
        for entry, rows in zip(snapshot.shards, masks, strict=True):
            if rows.either.any():
                self._take(entry, rows, vocabulary)

    def _take(self, entry: ShardEntry, rows: Gone, vocabulary: Vocabulary | None) -> None:
        storage = self._atlas.storage
        gone = rows.either
        visible = np.ones(entry.n_rows, bool)
        visible[read_overlay(storage, entry).hidden] = False
        self._touched.append(entry)
        for reason, some in _reasons(self._withdrawal.number, rows):
            for part, n in count_parts(storage, entry, some & visible):
                self._cells[part.key] += n
                self._reasons.setdefault(part.key, Counter())[reason] += n
        self._dropped += bool(gone.all())
        if vocabulary is None:
            return
        keys, _ = shard_keys(storage, entry)
        self._removed.append(keys[gone & visible])
        self._firsts.append(firsts(storage, entry, gone & visible, NEARLY_EMPTY))
        number = self._withdrawal.number
        if entry.parts:
            self._lost.update({part.made: part for part, _ in count_parts(storage, entry, gone)})
        elif gone.all():
            mark_wholly_withdrawn(storage, entry.planned, [number])
        if not gone.all():
            self.rewritten.append(without_rows(storage, vocabulary, entry, gone, [number]))

    def change(self) -> Change:
        """Return what the commit does: something even if no cell is affected, so that others see the withdrawal."""
        storage = self._atlas.storage
        there = {entry.key: entry for entry in self._snapshot.shards}
        touched = {entry.key for entry in self._touched}
        stay = [entry for entry in self._snapshot.shards if entry.key not in touched]
        # Only shards whose hashes were indexed are indexed again.
        indexed = {entry.planned for entry in self._touched if entry.hash_run}
        entries = with_clean_runs(storage, stay, self.rewritten, indexed)
        shown = {entry.key: entry for entry in show_again(storage, entries, self._removed)}
        now = [shown.get(entry.key, entry) for entry in entries]
        unmarked = {entry.key: entry for entry in unmark(storage, now, self._firsts, NEARLY_EMPTY)}
        changed = list((shown | unmarked).values())
        rows = HashIndex(storage, entries).add([entry for entry in changed if entry.hash_run])
        before = sum(entry.n_cells for entry in entries)
        merged = {entry.key: entry for entry in [*entries, *changed]} | rows
        merged = {key: self._noted(entry) for key, entry in merged.items()}
        left = {part.made for entry in merged.values() if entry.parts for part in entry.sources}
        for made in self._lost.keys() - left:
            numbers = joined([self._lost[made].withdrawals, str(self._withdrawal.number)])
            mark_wholly_withdrawn(storage, made, map(int, numbers.split(",")))
        self._shown_again = sum(entry.n_cells for entry in merged.values()) - before
        facts = {
            "withdrawal": str(self._withdrawal.number),
            "cells": str(self._cells.total()),
            "datasets": json.dumps(self._by_dataset()),
        }
        return Change(
            add=[entry for key, entry in sorted(merged.items()) if there.get(key) != entry],
            remove=sorted(touched - merged.keys()),
            message=f"withdraw {self._withdrawal.where} ({self._withdrawal.reason})",
            facts=facts,
            ledger={self._withdrawal.number: self._standing.noted(storage)},
        )

    def _noted(self, entry: ShardEntry) -> ShardEntry:
        """Return a shard that names the withdrawal with each part that loses cells, be it in other shards."""
        if not entry.parts or not any(part.made in self._lost for part in entry.sources):
            return entry
        number = str(self._withdrawal.number)
        parts = [
            part.model_copy(update={"withdrawals": joined([part.withdrawals, number])})
            if part.made in self._lost
            else part
            for part in entry.sources
        ]
        return entry.model_copy(update={"parts": encode_parts(parts)})

    def removal(self, version: int) -> Removal:
        """Return what was done."""
        return Removal(
            number=self._withdrawal.number,
            where=self._withdrawal.where,
            reason=self._withdrawal.reason,
            snapshot=version,
            cells=self._by_dataset(),
            known=sum(counts[known_reason(self._withdrawal.number)] for counts in self._reasons.values()),
            rewritten=len(self._touched) - self._dropped,
            dropped=self._dropped,
            shown_again=self._shown_again,
        )

    def amend_reports(self) -> None:
        """Count the cells in the reports of their data sets."""
        storage = self._atlas.storage
        for (dataset, digest), n in self._cells.items():
            key = f"reports/datasets/{dataset}/{digest[:16]}.json"
            if n and storage.exists(key):
                report: dict[str, Any] = json.loads(storage.get(key))
                dropped = report.setdefault("dropped", {})
                for reason, some in self._reasons[dataset, digest].items():
                    dropped[reason] = dropped.get(reason, 0) + some
                report["cells_out"] = report.get("cells_out", n) - n
                storage.put(key, json.dumps(report, indent=1).encode())

    def _by_dataset(self) -> dict[str, int]:
        found: Counter[str] = Counter()
        for (dataset, _), n in self._cells.items():
            found[dataset] += n
        return dict(found)


def reason_of(number: int) -> str:
    """Return why reports say that cells are left out."""
    return f"withdrawn (withdrawal {number})"


def known_reason(number: int) -> str:
    """Return why reports say that cells are left out that do not fulfil the predicate."""
    return f"withdrawn (withdrawal {number}, the same cells as before)"


def _reasons(number: int, rows: Gone) -> list[tuple[str, npt.NDArray[np.bool_]]]:
    """Return the reasons for which rows are left out, and which rows."""
    found = [(reason_of(number), rows.told), (known_reason(number), rows.known)]
    return [(reason, some) for reason, some in found if some.any()]


def _fulfilling(atlas: Atlas, newest: Snapshot, withdrawal: Withdrawal) -> Standing:
    """Return a withdrawal with the cells that fulfil it in any snapshot that is not forgotten."""
    older = Snapshot(atlas, newest.version, readable_shards(atlas, newest.version))
    found = Standing(withdrawal, Taken())
    predicate = read_predicate(withdrawal.where)

    def look(entry: ShardEntry) -> pa.Table:
        rows = fulfilling(predicate, atlas.storage, entry)
        return found.identities(atlas.storage, entry, rows) if rows.any() else SCHEMA.empty_table()

    found.taken.add(pa.concat_tables([SCHEMA.empty_table(), *older.stream(look, older.shards)]))
    return found


def _and_before(atlas: Atlas, snapshot: Snapshot, known: Standing) -> Standing:
    """Return a withdrawal with cells that are known, and those that it took already, if it was made before.

    Raises
    ------
    AtlasError
        It was lifted meanwhile.
    """
    before = next((one for one in atlas.withdrawals(snapshot.version) if one.number == known.number), None)
    if before is None:
        raise AtlasError(f"Withdrawal {known.number} was lifted meanwhile.", where=atlas.url)
    for table in known.taken.tables:
        before.taken.add(table)
    return before


def _columns(atlas: Atlas, newest: Snapshot, wanted: Iterable[str]) -> Mapping[str, pa.DataType]:
    """Return the columns of a snapshot and, if it lacks one, those of all that can be read: a source may come back."""
    if newest.columns.keys() >= set(wanted):
        return newest.columns
    return Snapshot(atlas, newest.version, readable_shards(atlas, newest.version)).columns
