"""Ingestion from configuration to commit; where its tasks run is the backend's business."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import anndata as ad

from cellmill.atlas import Atlas, Change, ShardEntry, Snapshot
from cellmill.console import console, progress
from cellmill.errors import ConfigError, SourceError
from cellmill.genes import Vocabulary
from cellmill.ingestion import shards, staging
from cellmill.ingestion.backend import Backend, LocalBackend
from cellmill.ingestion.config import IngestConfig, SourceConfig
from cellmill.ingestion.dataset_report import DatasetReport
from cellmill.ingestion.plan import SourcePlan, plan_source
from cellmill.ingestion.result import IngestResult, write_run
from cellmill.ingestion.sources import AnnDataSource, Source
from cellmill.ingestion.sources.h5ad import open_h5ad
from cellmill.ingestion.tally import Tally
from cellmill.ingestion.tasks import make_shard, read_chunk
from cellmill.storage import Storage


def ingest(
    config: IngestConfig | ad.AnnData, *, atlas: str | Path | None = None, dataset: str = "memory", licence: str = ""
) -> IngestResult:
    """Add data sets to an atlas in one commit, or change nothing.

    Parameters
    ----------
    config
        What to ingest and how; or an AnnData in memory, which is ingested in this process, without a cluster.
    atlas, dataset, licence
        For an AnnData: where to, its name there, and its licence.

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
        source = SourceConfig(path=f"memory:{dataset}", dataset=dataset, licence=licence or "unknown")
        source = source.model_copy(update={"obs": {str(name): str(name) for name in config.obs.columns}})
        settings = IngestConfig(atlas=str(atlas), sources=(source,), backend="local")
        return _ingest(settings, [(AnnDataSource(config, dataset), None, source)], LocalBackend())
    opened = [(open_h5ad(path, name), path, source) for path, name, source in expand(config)]
    return _ingest(config, opened, _backend(config))


def expand(config: IngestConfig) -> Iterator[tuple[Path, str, SourceConfig]]:
    """Yield each file of a configuration, with the name of its data set.

    Raises
    ------
    SourceError
        A pattern finds no file.
    """
    for source in config.sources:
        paths = sorted(map(Path, glob.glob(source.path))) if glob.has_magic(source.path) else [Path(source.path)]
        if not paths:
            raise SourceError("No file has such a name.", where=source.path, fix="Check the pattern.")
        for path in paths:
            yield path, source.dataset or _name(path), source


def plan(config: IngestConfig) -> list[SourcePlan]:
    """Return what an ingestion would read, without writing anything (``--dry-run``)."""
    return [plan_source(open_h5ad(path, name), path, source, config) for path, name, source in expand(config)]


def _ingest(
    config: IngestConfig, opened: Sequence[tuple[Source, Path | None, SourceConfig]], backend: Backend
) -> IngestResult:
    plans = [(plan_source(source, path, own, config), source) for source, path, own in opened]
    atlas = Atlas.open_or_create(config.atlas)
    present = {entry.key for entry in atlas.snapshot().shards}
    unchanged = tuple(plan.dataset for plan, _ in plans if _is_present(atlas.storage, plan, present))
    todo = [(plan, source) for plan, source in plans if plan.dataset not in unchanged]
    reports, entries = [], []
    for plan, source in todo:
        report, made = _one(config, atlas, plan, source if plan.path is None else None, backend)
        reports.append(report)
        entries += made
    version, changed = atlas.update(partial(_change, entries, reports))
    for report in reports:
        key = f"reports/datasets/{report.dataset}/{report.sha256[:16]}.json"
        atlas.storage.put(key, report.model_dump_json(indent=1).encode())
    for plan, _ in todo:
        staging.clear(atlas.storage, plan)
    return IngestResult(
        atlas=atlas.url,
        snapshot=version,
        changed=changed,
        reports=tuple(reports),
        unchanged=unchanged,
        run=write_run(config, atlas.snapshot(version), reports),
    )


def _one(
    config: IngestConfig, atlas: Atlas, plan: SourcePlan, source: Source | None, backend: Backend
) -> tuple[DatasetReport, list[ShardEntry]]:
    """Make the shards of one source, uncommitted."""
    storage = atlas.storage
    console.print(
        f"{plan.dataset}: {plan.n_cells:,} cells, {len(plan.mapping.names):,} features, counts in {plan.place}"
    )
    tally = Tally(plan)
    read = partial(read_chunk, storage=storage, plan=plan, source=source, quality=config.quality)
    with progress(plan.n_cells, f"{plan.dataset}: reading") as advance:
        for row in backend.map(read, len(plan.chunks)):
            tally.add(row)
            advance(int(row["cells_in"]))
    report = tally.report()
    report.genes.check(config.genes, where=plan.url)
    if report.cells_out == 0:
        raise SourceError("No cell passes the quality limits.", where=plan.url, fix=f"Left out: {report.dropped}.")
    vocabulary: Vocabulary = atlas.vocabulary_store.allocate(plan.mapping.features)
    entries = []
    make = partial(make_shard, storage=storage, plan=plan, vocabulary=vocabulary)
    with progress(report.cells_out, f"{plan.dataset}: writing") as advance:
        for row in backend.map(make, plan.n_shards):
            if row["entry"]:
                entries.append(ShardEntry.model_validate_json(row["entry"]))
                advance(int(row["cells"]))
    return report, entries


def _change(entries: list[ShardEntry], reports: list[DatasetReport], snapshot: Snapshot) -> Change | None:
    present = {entry.key for entry in snapshot.shards}
    new = [entry for entry in entries if entry.key not in present]
    # A data set that comes again from the same file under another configuration replaces its former self.
    again = {(report.dataset, report.url) for report in reports}
    fresh = {entry.key for entry in entries}
    gone = [e.key for e in snapshot.shards if (e.dataset, e.source_url) in again and e.key not in fresh]
    if not new and not gone:
        return None
    facts = {"cells": str(sum(entry.n_cells for entry in new)), "shards": str(len(new)), "replaced": str(len(gone))}
    return Change(new, gone, "ingest " + ", ".join(sorted({report.dataset for report in reports})), facts)


def _is_present(storage: Storage, plan: SourcePlan, present: set[tuple[str, str]]) -> bool:
    """Return whether every shard of a source that has cells is in the snapshot."""
    mine = [(plan.dataset, digest) for digest in plan.shard_digests]
    missing = [number for number, key in enumerate(mine) if key not in present]
    return len(missing) < len(mine) and all(shards.existing(storage, plan, number) is None for number in missing)


def _backend(config: IngestConfig) -> Backend:
    if config.backend == "local":
        return LocalBackend()
    from cellmill.ingestion.job import RayBackend

    return RayBackend(config.cluster)


def _name(path: Path) -> str:
    return (
        "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in path.stem).lstrip("._-") or "data"
    )
