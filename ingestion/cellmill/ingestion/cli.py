"""`cellmill ingest`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from cellmill.config import load_config
from cellmill.console import console, emit
from cellmill.ingestion.config import IngestConfig
from cellmill.ingestion.dataset_report import DatasetReport


def ingest(
    config: Annotated[Path, typer.Argument(help="YAML: the atlas, and the data sets to add.")],
    settings: Annotated[list[str] | None, typer.Option("--set", help="Set a key: --set shard_cells=10000")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be read, and write nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Add data sets to an atlas, in one commit: genes harmonised, raw counts checked, every loss reported.

    Ingesting the same file again changes nothing; a run that was cut off goes on where it stopped.
    """
    from cellmill.ingestion import pipeline
    from cellmill.ingestion.result import REPORT

    loaded = load_config(IngestConfig, config, settings or [])
    if dry_run:
        plans = pipeline.plan(loaded)
        lines = [
            {
                "dataset": plan.dataset,
                "source": plan.url,
                "organism": plan.organism,
                "counts": plan.place,
                "cells": plan.cells_in,
                "left_out": plan.left_out,
                "unread": plan.unread,
                "features": len(plan.mapping.names),
                "known": len(plan.mapping.features),
                "chunks": len(plan.chunks),
                "shards": plan.n_shards,
            }
            for plan in plans
        ]
        emit({"plan": lines}, as_json, lambda: _show_plan(lines))
        return
    result = pipeline.ingest(loaded)

    def render() -> None:
        if result.reports:
            console.print(_table([line for report in result.reports for line in _lines(report)]))
        for name in result.unchanged:
            console.print(f"{name}: already in the atlas, unchanged")
        console.print(f"Snapshot {result.snapshot} of {result.atlas}" + ("" if result.changed else " (no change)"))
        console.print(f"Report: {result.run / REPORT if result.reports else result.run}", soft_wrap=True)

    emit(result.model_dump(mode="json"), as_json, render)


def _show_plan(lines: list[dict[str, Any]]) -> None:
    aside = ("left_out", "unread")
    console.print(_table([{name: value for name, value in line.items() if name not in aside} for line in lines]))
    for line in lines:
        for reason, n in line["left_out"].items():
            console.print(f"{line['dataset']}: {n:,} cells will be left out, {reason}", soft_wrap=True)
        for place in line["unread"]:
            console.print(f"{line['dataset']}: not read: {place} (name it with `join`)", soft_wrap=True)


def _lines(report: DatasetReport) -> list[dict[str, object]]:
    """Return a line for each modality; what belongs to all of them stands in the first."""
    own = {"dataset": report.dataset, "cells in": report.cells_in, "cells out": report.cells_out}
    return [
        {
            **(own if number == 0 else dict.fromkeys(own, "")),
            "modality": part.modality,
            "features in": part.genes_in,
            "out": part.genes_out,
            "UMIs lost": f"{part.umis_lost:.2%}",
        }
        for number, part in enumerate(report.parts)
    ]


def _table(lines: list[dict[str, object]]) -> Table:
    table = Table(*(name.replace("_", " ") for name in lines[0]))
    for line in lines:
        table.add_row(*(f"{value:,}" if isinstance(value, int) else str(value) for value in line.values()))
    return table
