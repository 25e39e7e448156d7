"""Ingestion from configuration to commit; where its tasks run is the backend's business."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import anndata as ad

from cellmill.atlas import Atlas, ShardEntry
from cellmill.atlas.lease import Lease
from cellmill.atlas.presence import Presence
from cellmill.atlas.withdrawals import is_wholly_withdrawn
from cellmill.console import console, progress
from cellmill.errors import CellmillError, ConfigError, IntegrityError, SourceError
from cellmill.ingestion import shards, staging
from cellmill.ingestion.backend import Backend, LocalBackend
from cellmill.ingestion.commit import commit, purge_replaced, refuse_renamed
from cellmill.ingestion.config import IngestConfig, SourceConfig
from cellmill.ingestion.dataset_report import DatasetReport
from cellmill.ingestion.features import limits
from cellmill.ingestion.opening import close_source
from cellmill.ingestion.plan import SourcePlan, plan_source
from cellmill.ingestion.planning import plan_all
from cellmill.ingestion.result import IngestResult, write_run
from cellmill.ingestion.sources import AnnDataSource, Source
from cellmill.ingestion.tally import Tally
from cellmill.ingestion.tasks import MakeShard, ReadChunk
from cellmill.ingestion.withdrawn_columns import check_columns
from cellmill.ingestion.work import Work
from cellmill.runs import Run


def ingest(
    config: IngestConfig | ad.AnnData,
    *,
    atlas: str | Path | None = None,
    dataset: str = "memory",
    licence: str = "unknown",
    backend: Literal["ray", "local"] | None = None,
    guard: Callable[[], None] | None = None,
) -> IngestResult:
    """Add data sets to an atlas in one commit, or change nothing.

    Parameters
    ----------
    config
        What to ingest and how; or an AnnData in memory, which is ingested in this process, without a cluster, with
        all of its ``obs``.
    atlas
        Where to; needed for an AnnData, and otherwise in place of the configuration's.
    dataset, licence
        For an AnnData: its name in the atlas, and its licence.
    backend
        In place of the configuration's.
    guard
        Called right before each attempt to commit; what it raises keeps the commit from being made.

    Returns
    -------
    IngestResult
        The snapshot, and what happened to genes, UMIs and cells.

    Raises
    ------
    SourceError, CountsError, GeneMappingError, ConfigError
        A source cannot be read, holds no raw counts, loses too many genes, or is described wrongly. The atlas is as
        it was.
    ConflictError
        Other writers committed first, time after time.
    """
    if isinstance(config, ad.AnnData):
        if atlas is None:
            raise ConfigError("An AnnData needs to know where it goes.", where="atlas", fix="Give `atlas=`.")
        source = SourceConfig(path=f"memory:{dataset}", dataset=dataset, licence=licence, obs="all")
        settings = IngestConfig(atlas=str(atlas), sources=(source,), backend="local")
        memory = AnnDataSource(config, dataset)
        return _ingest(settings, [plan_source(memory, None, "memory", source, settings)], LocalBackend(), memory, guard)
    update = {"atlas": str(atlas) if atlas else config.atlas, "backend": backend or config.backend}
    settings = config.model_copy(update=update)
    if settings.output is not None:
        Run.require_free(settings.output)
    tasks = _backend(settings)
    return _ingest(settings, plan(settings, tasks), tasks, guard=guard)


def plan(config: IngestConfig, backend: Backend | None = None) -> list[SourcePlan]:
    """Return what an ingestion would read, without writing anything (``--dry-run``).

    Parameters
    ----------
    config
        The ingestion.
    backend
        In place of the configuration's.
    """
    return plan_all(config, backend or _backend(config))


def _ingest(
    config: IngestConfig,
    planned: Sequence[SourcePlan],
    backend: Backend,
    memory: Source | None = None,
    guard: Callable[[], None] | None = None,
) -> IngestResult:
    refuse_twins(planned)
    atlas = Atlas.open_or_create(config.atlas, sorted({plan.mapping.organism for plan in planned}))
    # What is found from here on is not collected as garbage before it is committed.
    with Lease(atlas.storage, "write", [name for plan in planned for name in _names(plan)]) as lease:

        def still_leased() -> None:
            lease.check()
            if guard is not None:
                guard()

        return _ingest_leased(config, atlas, planned, backend, memory, still_leased, lease)


def _ingest_leased(
    config: IngestConfig,
    atlas: Atlas,
    planned: Sequence[SourcePlan],
    backend: Backend,
    memory: Source | None,
    guard: Callable[[], None],
    lease: Lease,
) -> IngestResult:
    newest = atlas.snapshot()
    refuse_renamed(planned, newest.shards)
    withdrawals = atlas.withdrawals(newest.version)
    active = {one.number for one in withdrawals}
    present = Presence(newest.shards, active)
    here_already = [is_present(atlas, plan, present, active) for plan in planned]
    plans = [plan for plan, is_here in zip(planned, here_already, strict=True) if not is_here]
    unchanged = tuple(plan.url for plan, is_here in zip(planned, here_already, strict=True) if is_here)
    check_columns(atlas.storage, plans, withdrawals, ())
    n_cells = sum(plan.n_cells for plan in plans)
    work = Work(n_cells)
    with progress(n_cells, "ingesting", left=work.left) as advance:
        tallies = _read(config, atlas, plans, backend, memory, lambda cells: advance(work.read(cells)))
        entries = _write(atlas, plans, tallies, backend, lambda cells, of: advance(work.written(cells, of)))
    done = commit(atlas, plans, entries, [tally.report() for tally in tallies], config.duplicates, guard)
    for report in done.reports:
        key = f"reports/datasets/{report.dataset}/{report.source_digest[:16]}.json"
        atlas.storage.put(key, report.model_dump_json(indent=1).encode())
    for plan in plans:
        staging.clear(atlas.storage, plan)
    purge_replaced(atlas, done, lease)
    return IngestResult(
        atlas=atlas.url,
        snapshot=done.snapshot,
        changed=done.changed,
        reports=tuple(done.reports),
        unchanged=unchanged,
        run=write_run(config, atlas.snapshot(done.snapshot), done.reports),
    )


def _read(
    config: IngestConfig,
    atlas: Atlas,
    plans: Sequence[SourcePlan],
    backend: Backend,
    memory: Source | None,
    read_cells: Callable[[int], None],
) -> list[Tally]:
    """Read all chunks of all sources, and refuse a source that loses too much before anything is written."""
    for plan in plans:
        unread = f"; not read: {', '.join(plan.unread)}" if plan.unread else ""
        left_out = "".join(f" ({n:,} {reason})" for reason, n in plan.left_out.items())
        console.print(
            f"{plan.dataset}: {plan.organism}, {plan.cells_in:,} cells{left_out}, {len(plan.mapping.names):,} "
            f"features, counts in {plan.place}{unread}",
            soft_wrap=True,
        )
    read = ReadChunk(atlas.storage, plans, memory, config.quality)
    tallies = [Tally(plan) for plan in plans]
    try:
        for row in backend.map(read, read.n):
            tallies[int(row["source"])].add(row)
            read_cells(int(row["cells_in"]))
        for tally in tallies:
            check_losses(config, tally.report())
    except CellmillError:
        for plan in plans:
            staging.clear(atlas.storage, plan)
        raise
    finally:
        close_source()
    return tallies


def check_losses(config: IngestConfig, report: DatasetReport) -> None:
    """Refuse a source that loses too much.

    Raises
    ------
    GeneMappingError, SourceError
        Of its features and counts, or of its cells.
    """
    for part in report.parts:
        if (settings := limits(config, part.modality)) is not None:
            part.check(settings, where=report.url)
    if report.cells_out == 0:
        dropped = ", ".join(f"{n:,} cells: {reason}" for reason, n in report.dropped.items())
        raise SourceError("No cell passes the quality limits.", where=report.url, fix=f"{dropped}.")


def _write(
    atlas: Atlas,
    plans: Sequence[SourcePlan],
    tallies: Sequence[Tally],
    backend: Backend,
    wrote_cells: Callable[[int, int], None],
) -> list[ShardEntry]:
    """Give ids to all features, then write all shards."""
    if not plans:
        return []
    # The ids come first: no shard may hold a token that another ingestion could give to another feature.
    features = dict.fromkeys(feature for plan in plans for feature in plan.mapping.features)
    atlas.vocabulary()  # refuses one that lost features, whose ids would be given again
    vocabulary = atlas.vocabulary_store.allocate(features)
    make = MakeShard(atlas.storage, plans, vocabulary, [tally.shard_cells for tally in tallies])
    n_cells = int(sum(tally.shard_cells.sum() for tally in tallies))
    entries = []
    try:
        for row in backend.map(make, make.n):
            if row["entry"]:
                entries.append((int(row["source"]), ShardEntry.model_validate_json(row["entry"])))
                wrote_cells(int(row["cells"]), n_cells)
    except IntegrityError:
        # What was staged is incomplete: the next run shall read everything again.
        for plan in plans:
            staging.clear(atlas.storage, plan)
        raise
    return [entry for _, entry in sorted(entries, key=lambda pair: (pair[0], pair[1].key))]


def refuse_twins(plans: Sequence[SourcePlan]) -> None:
    """Refuse a configuration that names the same content twice."""
    seen: dict[str, SourcePlan] = {}
    for plan in plans:
        other = seen.setdefault(plan.source_digest, plan)
        if other is not plan:
            raise ConfigError(
                f"Two sources have the same content ({plan.dataset} and {other.dataset}).",
                where=f"{plan.url} and {other.url}",
                fix="Name the file once.",
            )


def _names(plan: SourcePlan) -> list[str]:
    """Return the beginnings of the keys that an ingestion of a source writes or finds."""
    shards_of = [f"shards/{plan.dataset}/{digest}.zarr/" for digest in plan.shard_digests]
    cells_of = [f"cells/{plan.dataset}/{digest}.parquet" for digest in plan.shard_digests]
    return [staging.prefix(plan), *shards_of, *cells_of]


def is_present(atlas: Atlas, plan: SourcePlan, present: Presence, active: set[int]) -> bool:
    """Return whether every shard of a source that has cells, and may have them, is in the snapshot."""
    if is_wholly_withdrawn(atlas.storage, (plan.dataset, plan.digest), active):
        return True
    mine = [(plan.dataset, digest) for digest in plan.shard_digests]
    missing = [number for number, key in enumerate(mine) if not present.has(*key, plan.digest)]
    missing = [number for number in missing if not is_wholly_withdrawn(atlas.storage, mine[number], active)]
    # A shard that is not in the snapshot had no cells, or was never written.
    return len(missing) < len(mine) and not any(shards.is_written(atlas.storage, plan, n) for n in missing)


def _backend(config: IngestConfig) -> Backend:
    if config.backend == "local":
        return LocalBackend()
    from cellmill.ingestion.job import RayBackend

    return RayBackend(config.cluster, config.task_memory_mb)
