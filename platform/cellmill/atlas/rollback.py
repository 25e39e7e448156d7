"""Rollback: a new snapshot whose rows are those of an old one."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import TYPE_CHECKING

from cellmill.atlas.catalog import Change
from cellmill.atlas.clean_runs import with_clean_runs
from cellmill.atlas.entry import ShardEntry
from cellmill.atlas.forgotten import check_known
from cellmill.atlas.part_rows import count_parts
from cellmill.atlas.standing import Standing
from cellmill.errors import AtlasError

if TYPE_CHECKING:
    from cellmill.atlas.atlas import Atlas
    from cellmill.atlas.snapshot import Snapshot


def rollback(atlas: Atlas, version: int | str, message: str = "") -> tuple[int, bool]:
    """Make a snapshot with the rows of an old one; the snapshots between stay.

    Returns
    -------
    tuple
        Number of the newest snapshot, and whether this call made it: it does not where nothing would change.

    Raises
    ------
    AtlasError
        There is no such snapshot, it is forgotten, or it holds cells that were withdrawn since.
    """
    target = atlas.snapshot(version)

    def plan(newest: Snapshot) -> Change | None:
        # Asked under the lease of the commit: what is not forgotten now is not collected before the commit.
        check_known(atlas.storage, target.version)
        there = {entry.key: entry for entry in newest.shards}
        withdrawals = atlas.withdrawals(newest.version)
        _refuse_withdrawn(target, there, withdrawals)
        rows = [_indexed_as_now(entry, there.get(entry.key)) for entry in target.shards]
        back = {row.hash_run for row in rows} - {row.hash_run for row in newest.shards}
        if withdrawals and back - {""}:
            # A run that comes back may have the hashes of cells that were withdrawn since.
            rows = with_clean_runs(atlas.storage, rows)
        add = [row for row in rows if there.get(row.key) != row]
        gone = sorted(there.keys() - {row.key for row in rows})
        if not add and not gone:
            return None
        facts = {"rollback": str(target.version), "cells": str(target.n_cells)}
        return Change(add, gone, message or f"roll back to snapshot {target.version}", facts)

    return atlas.update(plan)


def _indexed_as_now(entry: ShardEntry, now: ShardEntry | None) -> ShardEntry:
    """Return a shard's row with the run that has its hashes now, if the same cells are hidden."""
    return now if now is not None and now.hash_run and now.overlay == entry.overlay else entry


def _refuse_withdrawn(target: Snapshot, there: Container[tuple[str, str]], withdrawals: Sequence[Standing]) -> None:
    storage = target.atlas.storage
    for entry in target.shards:
        if entry.key in there:
            continue
        for one in withdrawals:
            for part, n in count_parts(storage, entry, one.rows(storage, entry).either):
                raise AtlasError(
                    f"Snapshot {target.version} holds cells that were withdrawn since ({n:,} in data set "
                    f"{part.dataset!r}, withdrawal {one.number}: {one.withdrawal.where}).",
                    where=target.atlas.url,
                    fix="Ingest the data sets again, or lift the withdrawal with `cellmill atlas remove --lift`.",
                )
