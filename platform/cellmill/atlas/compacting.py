"""Compaction: the cells of many shards in new shards, so that neighbours come from all over the atlas.

Shards of an ingestion hold the cells of one source, in random order. A stream mixes them by reading long runs of many
shards side by side; where runs must be short, or shards are many and small, it pays to have cells of all sources in
every shard. A compaction draws one permutation over all cells and writes them in that order. Every cell keeps its id,
its metadata and what is known of its source, so that selections, splits, lineage, withdrawals and later ingestions see
the same cells as before. Hidden rows stay hidden: one of them is shown when the cell that it duplicates goes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cellmill.atlas.catalog import Change
from cellmill.atlas.cells import CellsFile
from cellmill.atlas.compaction_plan import CompactionPlan, plan_compaction
from cellmill.atlas.entry import ShardEntry
from cellmill.atlas.hash_index import HashIndex
from cellmill.atlas.lease import Lease
from cellmill.atlas.mixed_shard import write_shards
from cellmill.atlas.overlay import Overlay, read_overlay
from cellmill.atlas.part import encode_parts, joined
from cellmill.atlas.part_rows import overlaid
from cellmill.atlas.snapshot import Snapshot
from cellmill.config import Config
from cellmill.errors import ConflictError, IntegrityError
from cellmill.scratch import delete_left_folders
from cellmill.storage import Storage

if TYPE_CHECKING:
    from cellmill.atlas.atlas import Atlas

SHARD_CELLS = 65_536
THREADS = max(1, min(8, os.cpu_count() or 1))
"""What the command takes, so that memory stays below that of a small machine."""
_ATTEMPTS = 5


class Compaction(Config):
    """What a compaction did, or would do.

    Attributes
    ----------
    snapshot, changed
        The snapshot that has the new shards, and whether this call made it; for a trial the one that was looked at.
    datasets
        Cells that are compacted, by data set; hidden ones are not counted.
    hidden
        Cells that are hidden, before and after.
    shards_before, shards_after
        How many shards had the cells, and how many have them.
    bytes_before, bytes_after
        Their sizes; `bytes_after` is 0 for a trial.
    temporary_bytes
        About how much room is needed for temporary files.
    left_out
        Data sets that are linked: their counts stay where they are unless they are named.
    """

    snapshot: int
    changed: bool
    datasets: dict[str, int]
    hidden: int
    shards_before: int
    shards_after: int
    bytes_before: int
    bytes_after: int
    temporary_bytes: int
    left_out: tuple[str, ...]


def compact(
    atlas: Atlas,
    datasets: Sequence[str] = (),
    *,
    seed: int = 0,
    shard_cells: int = SHARD_CELLS,
    threads: int = 1,
    dry_run: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Compaction:
    """Write the cells of data sets into new shards, in one random order over all of them, as one commit.

    New shards are named by what they are made of, so that a compaction that was cut off goes on with those that are
    complete. Other commits may come between; where one touches the very shards, the compaction begins again from there.
    Older snapshots keep the old shards until a garbage collection forgets these.

    Parameters
    ----------
    atlas
        The atlas.
    datasets
        Names; by default all but those that are linked. A shard that holds one of them is taken whole.
    seed
        Of the order.
    shard_cells
        Cells of a new shard, about.
    threads
        How many shards are read, and then written, side by side, each with a few hundred MB; the result is the same
        with any number.
    dry_run
        Say what would be done, and do nothing.
    progress
        Called with the number of cells done since the last call, each counted once.

    Raises
    ------
    AtlasError
        The snapshot has no such data set, or no cells.
    ConflictError
        Other commits touched the shards, time after time.
    IntegrityError
        A shard is missing or damaged.
    StorageError
        There is no room for temporary files.
    LockError
        The process was paused for so long that what it wrote may have been collected; nothing was committed.
    """
    delete_left_folders()
    for _ in range(_ATTEMPTS):
        snapshot = atlas.snapshot()
        plan = plan_compaction(snapshot, datasets, seed, shard_cells)
        if dry_run or plan.is_done:
            return _told(plan, plan.inputs, snapshot.version, False)
        with Lease(atlas.storage, "write", plan.names) as lease:
            try:
                new = write_shards(atlas, plan, progress or (lambda cells: None), threads)
            except IntegrityError:
                if _has(atlas.snapshot(), plan):
                    raise
                continue  # the shards went out of the snapshot, and perhaps out of the store
            done = _commit(atlas, plan, new, lease)
        if done is not None:
            return _told(plan, new, *done)
    raise ConflictError(
        f"Other commits touched the shards {_ATTEMPTS} times.",
        where=atlas.url,
        fix="Run again when nothing else writes; nothing was committed.",
    )


def _has(snapshot: Snapshot, plan: CompactionPlan) -> bool:
    return {entry.key for entry in plan.inputs} <= {entry.key for entry in snapshot.shards}


def _commit(atlas: Atlas, plan: CompactionPlan, new: Sequence[ShardEntry], lease: Lease) -> tuple[int, bool] | None:
    """Put new shards in the place of old ones; None if the snapshot no longer has these."""
    moved = False

    def change(snapshot: Snapshot) -> Change | None:
        nonlocal moved
        lease.check()
        there = {entry.key: entry for entry in snapshot.shards}
        if moved := not _has(snapshot, plan):
            return None
        # Since the plan was made other cells may have been hidden or withdrawn.
        old = [there[entry.key] for entry in plan.inputs]
        entries = [_as_now(atlas.storage, entry, old) for entry in new]
        stay = [entry for entry in snapshot.shards if entry.key not in {one.key for one in old}]
        rows = {entry.key: entry for entry in entries}
        if any(entry.hash_run for entry in old):
            rows |= HashIndex(atlas.storage, stay).add(entries)
        facts = {
            "cells": str(sum(entry.n_cells for entry in entries)),
            "shards": str(len(entries)),
            "replaced": str(len(old)),
            "seed": str(plan.seed),
        }
        named = ", ".join(plan.datasets[:5]) + (f" and {len(plan.datasets) - 5} more" if plan.datasets[5:] else "")
        gone = sorted(entry.key for entry in old)
        return Change(list(rows.values()), gone, f"compact {named}", facts)

    found = atlas.update(change)
    return None if moved else found


def _as_now(storage: Storage, entry: ShardEntry, old: Sequence[ShardEntry]) -> ShardEntry:
    """Return a new shard with the rows hidden and marked, and the withdrawals named, that its cells have elsewhere."""
    hidden, marked = _ids(storage, old)
    if hidden.size or marked.size:
        ids = CellsFile(storage, entry).read(["cell_id"]).column(0).to_numpy()
        rows = [np.flatnonzero(np.isin(ids, some)).astype(np.uint32) for some in (hidden, marked)]
        entry = overlaid(storage, entry, Overlay(*rows))
    said: dict[tuple[str, str], list[str]] = {}
    for one in old:
        for part in one.sources:
            said.setdefault(part.key, []).append(part.withdrawals)
    parts = [part.model_copy(update={"withdrawals": joined(said[part.key])}) for part in entry.sources]
    return entry.model_copy(update={"parts": encode_parts(parts)})


def _ids(storage: Storage, entries: Sequence[ShardEntry]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Return the ids of the cells that are hidden, and of those that are marked as duplicates."""
    found: list[list[npt.NDArray[np.uint64]]] = [[np.empty(0, np.uint64)], [np.empty(0, np.uint64)]]
    for entry in entries:
        overlay = read_overlay(storage, entry)
        if overlay.hidden.size or overlay.duplicate.size:
            ids = CellsFile(storage, entry).read(["cell_id"]).column(0).to_numpy()
            found[0].append(ids[overlay.hidden])
            found[1].append(ids[overlay.duplicate])
    return np.concatenate(found[0]), np.concatenate(found[1])


def _told(plan: CompactionPlan, after: Sequence[ShardEntry], version: int, changed: bool) -> Compaction:
    cells: dict[str, int] = {}
    for entry in plan.inputs:
        for part in entry.sources:
            cells[part.dataset] = cells.get(part.dataset, 0) + part.n_cells
    return Compaction(
        snapshot=version,
        changed=changed,
        datasets=dict(sorted(cells.items())),
        hidden=sum(entry.n_rows - entry.n_cells for entry in plan.inputs),
        shards_before=len(plan.inputs),
        shards_after=len(plan.digests) if not plan.is_done else len(plan.inputs),
        bytes_before=sum(entry.bytes for entry in plan.inputs),
        bytes_after=sum(entry.bytes for entry in after) if changed else 0,
        temporary_bytes=0 if plan.is_done else plan.temporary_bytes,
        left_out=plan.left_out,
    )
