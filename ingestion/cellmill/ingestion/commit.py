"""The commit of an ingestion: duplicates against the newest snapshot, one transaction, the counts for the report."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cellmill.atlas import Atlas, Change, ShardEntry, Snapshot
from cellmill.atlas.lease import Lease
from cellmill.atlas.part import Part
from cellmill.atlas.presence import Presence
from cellmill.atlas.purging import purge
from cellmill.atlas.standing import Standing
from cellmill.atlas.withdrawing import without_withdrawn
from cellmill.console import console
from cellmill.errors import CellmillError, ConfigError
from cellmill.ingestion.config import DuplicateConfig
from cellmill.ingestion.dataset_report import DatasetReport
from cellmill.ingestion.duplicates import Found, find_duplicates
from cellmill.ingestion.plan import SourcePlan
from cellmill.ingestion.superseding import changed_rows, take_apart
from cellmill.ingestion.withdrawn_columns import check_columns, untold


@dataclass(frozen=True)
class Committed:
    """What a commit did.

    Attributes
    ----------
    snapshot
        Its number.
    changed
        Whether this call made it.
    reports
        Those of the data sets, with duplicates and withdrawn cells in them.
    replaced
        Data sets and digests of shards that were written and are not in the snapshot: they hold withdrawn cells.
    """

    snapshot: int
    changed: bool
    reports: list[DatasetReport]
    replaced: frozenset[tuple[str, str]]


def commit(
    atlas: Atlas,
    plans: Sequence[SourcePlan],
    entries: Sequence[ShardEntry],
    reports: Sequence[DatasetReport],
    config: DuplicateConfig,
    guard: Callable[[], None] | None = None,
) -> Committed:
    """Commit shards that are written, if the guard lets it: it is called right before each attempt, and may raise.

    A source that comes again, by its path or its content, under another configuration or with other content, replaces
    its former self in its data set. Cells that were withdrawn are left out.

    Raises
    ------
    ConfigError
        Another ingestion has committed one of the files under another name meanwhile.
    """
    found = Found()
    withdrawn: dict[str, Counter[str]] = {}
    written = {entry.key for entry in entries}
    replaced: set[tuple[str, str]] = set()
    remembered: list[Standing] = []
    holding: Sequence[Standing] = ()
    vocabulary = atlas.vocabulary()

    def plan(snapshot: Snapshot) -> Change | None:
        nonlocal found, withdrawn, replaced, remembered, holding
        refuse_renamed(plans, snapshot.shards)
        # Asked again after a lost race, this looks at what the winner left, withdrawals included.
        withdrawals = atlas.withdrawals(snapshot.version)
        active = {one.number for one in withdrawals}
        present = Presence(snapshot.shards, active)
        missing = [entry for entry in entries if not present.has(*entry.planned, entry.config_digest)]
        again = {entry.planned for entry in missing}
        made_again = {(entry.dataset, entry.config_digest) for entry in missing}

        def is_gone(entry: ShardEntry, part: Part) -> bool:
            replaced = part.made in made_again if entry.parts else entry.planned in again
            return replaced or _superseded(part, plans)

        gone = [entry for entry in snapshot.shards if any(is_gone(entry, part) for part in entry.sources)]
        unlike = [plan for plan in plans if any(entry.config_digest == plan.digest for entry in missing)]
        check_columns(atlas.storage, unlike, withdrawals, gone)
        holding = withdrawals
        new, withdrawn = without_withdrawn(atlas.storage, vocabulary, missing, withdrawals)
        written.update(entry.key for entry in new)
        replaced = written - {entry.key for entry in (*new, *snapshot.shards)}
        # Cells that were never in the atlas are remembered, too, even if nothing else changes.
        remembered = [one for one in withdrawals if one.taken.has_grown]
        if not new and not gone and not remembered:
            return None
        rest = take_apart(atlas.storage, lambda: vocabulary, snapshot.shards, is_gone)
        found = find_duplicates(atlas.storage, new, rest.stay, rest.leaving, config)
        datasets = sorted({plan.dataset for plan in plans})
        named = ", ".join(datasets[:5]) + (f" and {len(datasets) - 5} more" if len(datasets) > 5 else "")
        facts = {
            "cells": str(sum(entry.n_cells for entry in found.entries)),
            "shards": str(len(new)),
            "replaced": str(rest.n_parts),
            "duplicates": str(sum(counts.total() for counts in found.duplicates.values())),
            "hash_bytes_read": str(found.bytes_read),
        }
        if guard is not None:
            guard()
        add, remove = changed_rows(snapshot.shards, [*rest.stay, *found.changed, *found.entries])
        ledger = {one.number: one.noted(atlas.storage) for one in remembered}
        return Change(add, remove, f"ingest {named}", facts, ledger)

    version, changed = atlas.update(plan)
    reports = [
        report.model_copy(update={"untold": untold(plan, holding)}) for report, plan in zip(reports, plans, strict=True)
    ]
    for report in reports if changed else ():
        for line in report.untold_lines:
            console.print(f"{report.dataset}: {line}", style="yellow", soft_wrap=True)
    if remembered:
        _tell_left(atlas, version, remembered)
    told = [_told(report, plan, found, config) for report, plan in zip(reports, plans, strict=True)]
    return Committed(
        snapshot=version,
        changed=changed,
        reports=[_counted(report, withdrawn.get(plan.digest)) for report, plan in zip(told, plans, strict=True)],
        replaced=frozenset(replaced),
    )


def _tell_left(atlas: Atlas, version: int, withdrawals: Sequence[Standing]) -> None:
    """Say where the snapshot has cells that turned out to be withdrawn: in a file that is also joined with others."""
    shards = atlas.snapshot(version).shards
    for one in withdrawals:
        n = sum(int(one.rows(atlas.storage, entry).either.sum()) for entry in shards)
        if n:
            console.print(
                f"{n:,} cells of other sources are cells of withdrawal {one.number}, too. They go with: "
                f"cellmill atlas remove {atlas.url} --where {shlex.quote(one.withdrawal.where)} --reason ...",
                style="yellow",
                soft_wrap=True,
            )


def purge_replaced(atlas: Atlas, done: Committed, lease: Lease) -> None:
    """Delete shards with withdrawn cells that are not committed; the commit stands whatever comes of it."""
    try:
        left = purge(atlas, done.replaced, lease)
    except CellmillError as error:
        left = len(done.replaced)
        console.print(error.what, style="yellow", soft_wrap=True)
    if left:
        console.print(
            f"{left:,} shards with withdrawn cells are left for `cellmill atlas gc {atlas.url} --forget`.",
            soft_wrap=True,
        )


def refuse_renamed(plans: Sequence[SourcePlan], entries: Sequence[ShardEntry]) -> None:
    """Refuse a file that is in the atlas under another name: its cells would have the same ids twice.

    Raises
    ------
    ConfigError
        Names the data set that has it.
    """
    names = {part.source_digest: part.dataset for entry in entries for part in entry.sources}
    for plan in plans:
        name = names.get(plan.source_digest, plan.dataset)
        if name != plan.dataset:
            raise ConfigError(
                f"The file is in the atlas already, as data set {name!r}.",
                where=plan.url,
                fix=f"Leave it out, or set `dataset: {name}`.",
            )


def _superseded(part: Part, plans: Sequence[SourcePlan]) -> bool:
    return any(
        part.dataset == plan.dataset
        and (part.source_url == plan.url or part.source_digest == plan.source_digest)
        and part.config_digest != plan.digest
        for plan in plans
    )


def _counted(report: DatasetReport, withdrawn: Counter[str] | None) -> DatasetReport:
    """Return a report with the cells that withdrawals took."""
    if not withdrawn:
        return report
    return report.model_copy(
        update={"dropped": report.dropped | withdrawn, "cells_out": report.cells_out - withdrawn.total()}
    )


def _told(report: DatasetReport, plan: SourcePlan, found: Found, config: DuplicateConfig) -> DatasetReport:
    """Return a report with the duplicates that were found."""
    cells = sum(entry.n_rows for entry in found.entries)
    mine = sum(entry.n_rows for entry in found.entries if entry.config_digest == plan.digest)
    report = report.model_copy(update={"hash_bytes_read": found.bytes_read * mine // max(cells, 1)})
    counts = found.duplicates.get(plan.digest)
    if not counts:
        return report
    if config.policy == "mark":
        return report.model_copy(update={"marked": dict(counts)})
    dropped = {f"duplicate of a cell in {name}": n for name, n in counts.items()}
    return report.model_copy(
        update={"dropped": {**report.dropped, **dropped}, "cells_out": report.cells_out - counts.total()}
    )
