"""What an ingestion did, and the run's directory that tells of it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from pathlib import Path

from cellmill.atlas import Atlas, Snapshot
from cellmill.config import Config
from cellmill.ingestion.config import IngestConfig
from cellmill.ingestion.dataset_report import DatasetReport, labels, parts
from cellmill.ingestion.plots import cell_figure, gene_figure
from cellmill.ingestion.report_page import write_report
from cellmill.ingestion.sources.remote import bare
from cellmill.runs import Run

REPORT = "report.html"
"""The page for people in a run's directory; ``summary.json`` beside it is for machines."""


class IngestResult(Config):
    """What an ingestion did.

    Attributes
    ----------
    atlas, snapshot
        The atlas, and the snapshot that holds the data sets.
    changed
        Whether a commit was made; ingesting the same again makes none.
    reports
        What happened to each data set.
    unchanged
        Sources that were in the atlas already, just so.
    run
        The run's directory.
    """

    atlas: str
    snapshot: int
    changed: bool
    reports: tuple[DatasetReport, ...]
    unchanged: tuple[str, ...]
    run: Path


def write_run(config: IngestConfig, snapshot: Snapshot, reports: Sequence[DatasetReport]) -> Path:
    """Write the run's directory: resolved configuration, summary, plots, report and lineage."""
    run = Run.create(config.output or _own_directory(config), "ingest", _without_secrets(config))
    named = dict(zip(labels(list(reports)), reports, strict=True))
    summary = {
        "atlas": snapshot.atlas.url,
        "snapshot": snapshot.version,
        "cells": snapshot.n_cells,
        "datasets": {name: _line(report) for name, report in named.items()},
        "features": {
            name: {str(key): n for key, n in part.genes.items()} for name, part in parts(list(reports)).items()
        },
        "reports": [report.model_dump(mode="json") for report in reports],
    }
    run.summary(summary)
    if reports:
        run.figure("genes_and_umis", gene_figure(reports))
        run.figure("cells", cell_figure(reports))
        where = f"snapshot {snapshot.version} of {snapshot.atlas.url}"
        write_report(run.path / REPORT, where, reports, run.path / "plots")
    run.lineage(snapshot.lineage())
    return run.path


def _without_secrets(config: IngestConfig) -> IngestConfig:
    """Return the configuration with its URLs as they may be written down."""

    def shown(path: str | None) -> str | None:
        return None if path is None else bare(path)

    sources = tuple(
        source.model_copy(
            update={
                "path": bare(source.path),
                "features": shown(source.features),
                "join": tuple(
                    join.model_copy(update={"path": shown(join.path), "features": shown(join.features)})
                    for join in source.join
                ),
            }
        )
        for source in config.sources
    )
    return config.model_copy(update={"sources": sources})


def _line(report: DatasetReport) -> dict[str, str | int]:
    return {
        "organism": report.organism,
        "licence": report.licence,
        "counts in": report.counts,
        "cells in": report.cells_in,
        "cells kept": report.cells_out,
        "duplicates marked": sum(report.marked.values()),
        "bytes of hashes read": report.hash_bytes_read,
        **{f"{part.modality} features in": part.genes_in for part in report.parts},
        **{f"{part.modality} features out": part.genes_out for part in report.parts},
        **{f"{part.modality} UMIs lost": f"{part.umis_lost:.2%}" for part in report.parts},
    }


def _own_directory(config: IngestConfig) -> Path:
    name = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(2)}"
    storage = Atlas.open(config.atlas).storage
    return storage.local_path(f"reports/runs/{name}") if storage.is_local else Path(f"ingest-{name}")
