"""One source into the atlas, or out of it: one commit each, none without the lock."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from cellmill.atlas import Atlas, Change, Snapshot
from cellmill.errors import IntegrityError
from cellmill.ingestion import pipeline
from cellmill.ingestion.config import DuplicateConfig, IngestConfig
from cellmill.ingestion.duplicates import find_duplicates
from cellmill.ingestion.schedule.state import Landed
from cellmill.ingestion.schedule.survey import Found
from cellmill.ingestion.superseding import changed_rows, take_apart


def land(
    config: IngestConfig, found: Found, guard: Callable[[], None], output: Path, now: datetime
) -> tuple[Landed, bool]:
    """Ingest one source; if it is in the atlas already, just so, nothing changes.

    Parameters
    ----------
    config
        How.
    found
        What.
    guard
        Called right before a commit; what it raises keeps it from being made.
    output
        Folder for the run's directory.
    now
        The time.

    Returns
    -------
    tuple
        How the source is in the atlas, and whether this call committed it.

    Raises
    ------
    CellmillError
        See `cellmill.ingestion.ingest`.
    """
    run = output / f"{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
    result = pipeline.ingest(config.model_copy(update={"sources": (found.source,), "output": run}), guard=guard)
    snapshot = Atlas.open(result.atlas).snapshot(result.snapshot)
    read = {report.source_digest for report in result.reports}
    every = (part for entry in snapshot.shards for part in entry.sources)
    mine = [part for part in every if part.source_url == found.url or part.source_digest in read]
    if not mine and not result.reports:
        raise IntegrityError(f"Snapshot {result.snapshot} does not name a source that it is to hold.", where=found.url)
    # Where all of its cells are withdrawn, only the report tells of a source.
    dataset, source_digest = (
        (mine[0].dataset, mine[0].source_digest)
        if mine
        else (result.reports[0].dataset, result.reports[0].source_digest)
    )
    landed = Landed(
        stamp=found.stamp,
        settings=found.settings,
        dataset=dataset,
        url=mine[0].source_url if mine else found.url,
        source_digest=source_digest,
        snapshot=result.snapshot,
        cells=sum(part.n_cells for part in mine),
        hidden=sum(part.n_rows - part.n_cells for part in mine),
        time=now,
    )
    return landed, result.changed


def take_out(
    atlas: Atlas, sources: Sequence[Landed], message: str, duplicates: DuplicateConfig, guard: Callable[[], None]
) -> tuple[int, int]:
    """Take sources out of the next snapshot, in one commit; cells that were hidden as their duplicates come back.

    Returns
    -------
    tuple
        Number of the snapshot that has them no more, and how many cells it lost.
    """
    gone_sources = {(source.dataset, source.url) for source in sources}
    lost = 0

    def plan(snapshot: Snapshot) -> Change | None:
        nonlocal lost
        rest = take_apart(
            atlas.storage,
            atlas.vocabulary,
            snapshot.shards,
            lambda _, part: (part.dataset, part.source_url) in gone_sources,
        )
        if not rest.leaving:
            return None
        restored = find_duplicates(atlas.storage, [], rest.stay, rest.leaving, duplicates)
        lost = sum(leaver.n_cells for leaver in rest.leaving)
        guard()
        facts = {"removed_shards": str(rest.n_parts), "cells": str(-lost)}
        add, remove = changed_rows(snapshot.shards, [*rest.stay, *restored.changed])
        return Change(add, remove, message, facts)

    return atlas.update(plan)[0], lost
