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
from cellmill.atlas.unhiding import show_again
from cellmill.atlas.withdrawals import (
    Withdrawal,
    mark_wholly_withdrawn,
    note_cells,
    read_predicate,
    record_withdrawal,
    withdrawn_rows,
)
from cellmill.config import Config
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
    rewritten: int
    dropped: int
    shown_again: int


def remove(atlas: Atlas, where: str, reason: str, *, dry_run: bool = False) -> Removal:
    """Withdraw the cells that fulfil a predicate, from the newest snapshot and from all later ingestions.

    Shards are written again without them, and so are the runs of hashes that had theirs. Older snapshots keep them
    until a garbage collection forgets these. A removal that was cut off is finished by calling this again.

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
    trial = Withdrawal(number=0, where=where, reason=reason, time="")
    if dry_run:
        return _Plan(atlas, newest, trial, None).removal(newest.version)
    withdrawal = record_withdrawal(atlas.storage, where, reason)
    older = Snapshot(atlas, newest.version, readable_shards(atlas, newest.version))
    masks = older.stream(lambda entry: withdrawn_rows(atlas.storage, entry, [withdrawal]), older.shards)
    affected = [pair for pair in zip(older.shards, masks, strict=True) if pair[1].any()]
    counted = [part for entry, gone in affected for part, _ in count_parts(atlas.storage, entry, gone)]
    note_cells(atlas.storage, withdrawal.number, (part.key for part in counted))
    vocabulary = atlas.vocabulary()
    made: list[_Plan] = []

    def plan(snapshot: Snapshot) -> Change:
        made.append(_Plan(atlas, snapshot, withdrawal, vocabulary))
        return made[-1].change()

    version, _ = atlas.update(plan)
    made[-1].amend_reports()
    purge(atlas, (entry.key for lost in made[:-1] for entry in lost.rewritten))
    return made[-1].removal(version)


def without_withdrawn(
    storage: Storage, vocabulary: Vocabulary, entries: Sequence[ShardEntry], withdrawals: Sequence[Withdrawal]
) -> tuple[list[ShardEntry], dict[str, Counter[int]]]:
    """Return shards that are about to be committed without their withdrawn cells.

    Returns
    -------
    tuple
        The shards, written again where need be, those without any cell left out; and by the digest of the
        configuration how many cells each withdrawal took.
    """
    found: list[ShardEntry] = []
    counts: dict[str, Counter[int]] = {}
    for entry in entries:
        gone = np.zeros(entry.n_rows, bool)
        numbers = []
        for withdrawal in withdrawals:
            more = withdrawn_rows(storage, entry, [withdrawal]) & ~gone
            if more.any():
                numbers.append(withdrawal.number)
                note_cells(storage, withdrawal.number, [entry.sources[0].key])
                counts.setdefault(entry.config_digest, Counter())[withdrawal.number] += int(more.sum())
                gone |= more
        if gone.all():
            mark_wholly_withdrawn(storage, entry.planned, numbers)
        else:
            found.append(without_rows(storage, vocabulary, entry, gone, numbers) if numbers else entry)
    return found, counts


class _Plan:
    """A removal from one snapshot. Without a vocabulary nothing is written."""

    def __init__(self, atlas: Atlas, snapshot: Snapshot, withdrawal: Withdrawal, vocabulary: Vocabulary | None) -> None:
        self._atlas, self._snapshot, self._withdrawal = atlas, snapshot, withdrawal
        storage = atlas.storage
        self._cells: Counter[tuple[str, str]] = Counter()
        self._touched: list[ShardEntry] = []
        self.rewritten: list[ShardEntry] = []
        self._dropped = 0
        self._shown_again = 0
        self._removed: list[U64] = []
        self._lost: dict[tuple[str, str], Part] = {}
        """Parts of compacted shards that lose cells, by what an ingestion plans."""
        masks = snapshot.stream(lambda entry: withdrawn_rows(storage, entry, [withdrawal]), snapshot.shards)
        for entry, gone in zip(snapshot.shards, masks, strict=True):
            if gone.any():
                self._take(entry, gone, vocabulary)

    def _take(self, entry: ShardEntry, gone: npt.NDArray[np.bool_], vocabulary: Vocabulary | None) -> None:
        storage = self._atlas.storage
        visible = np.ones(entry.n_rows, bool)
        visible[read_overlay(storage, entry).hidden] = False
        self._touched.append(entry)
        for part, n in count_parts(storage, entry, gone & visible):
            self._cells[part.key] += n
        self._dropped += bool(gone.all())
        if vocabulary is None:
            return
        keys, _ = shard_keys(storage, entry)
        self._removed.append(keys[gone & visible])
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
        changed = show_again(storage, entries, self._removed)
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
            rewritten=len(self._touched) - self._dropped,
            dropped=self._dropped,
            shown_again=self._shown_again,
        )

    def amend_reports(self) -> None:
        """Count the cells in the reports of their data sets."""
        storage = self._atlas.storage
        for (dataset, sha256), n in self._cells.items():
            key = f"reports/datasets/{dataset}/{sha256[:16]}.json"
            if n and storage.exists(key):
                report: dict[str, Any] = json.loads(storage.get(key))
                dropped = report.setdefault("dropped", {})
                reason = reason_of(self._withdrawal.number)
                dropped[reason] = dropped.get(reason, 0) + n
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


def _columns(atlas: Atlas, newest: Snapshot, wanted: Iterable[str]) -> Mapping[str, pa.DataType]:
    """Return the columns of a snapshot and, if it lacks one, those of all that can be read: a source may come back."""
    if newest.columns.keys() >= set(wanted):
        return newest.columns
    return Snapshot(atlas, newest.version, readable_shards(atlas, newest.version)).columns
