"""`cellmill schedule`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from cellmill.config import load_config
from cellmill.console import console, emit
from cellmill.errors import CellmillError
from cellmill.ingestion.schedule.config import ScheduleConfig


def schedule(
    config: Annotated[Path, typer.Argument(help="YAML: what to ingest, a cron expression, what happens around it.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set a key: --set vanished.policy=remove")
    ] = None,
    once: Annotated[
        bool, typer.Option("--once", help="Run one tick now and leave: for cron, CronJob, Airflow.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what a tick would do, and write nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines, one line for each tick.")] = False,
) -> None:
    """Keep an atlas up to date with its sources: ingest what is new or changed, and nothing else.

    Without --once it stays, and runs by the cron expression.

    Two runs of one schedule never overlap, on whatever machines.

    A run that was cut off is taken up by the next: nothing is lost or repeated.

    With --once the exit code is 1 if something failed, 0 if another run was under way.
    """
    from cellmill.ingestion.schedule.loop import Scheduler
    from cellmill.ingestion.schedule.report import TickReport

    scheduler = Scheduler(load_config(ScheduleConfig, config, settings or []))
    if dry_run:
        plan = [
            {"what": one.kind, "source": one.key, "reason": one.reason}
            for one in sorted(scheduler.dry_run(), key=lambda one: (one.kind == "unchanged", one.key))
        ]

        def render() -> None:
            table = Table("what", "source", "reason", box=None)
            for line in plan:
                table.add_row(line["what"], line["source"], line["reason"])
            console.print(table)

        emit({"plan": plan}, as_json, render)
        return

    def tell(report: TickReport) -> None:
        if as_json:
            sys.stdout.write(json.dumps(report.model_dump(mode="json")) + "\n")
            sys.stdout.flush()

    if not once:
        scheduler.run(tell)
    report = scheduler.once()
    tell(report)
    if not report.is_well:
        if as_json:
            raise typer.Exit(CellmillError.exit_code)
        raise CellmillError(
            "The tick failed." if report.outcome == "failed" else "Not everything went well; the rest is done.",
            where=str(config),
            fix=report.detail
            or f"{scheduler.board.status.atlas}/schedule/{scheduler.board.status.schedule}/status.html",
        )
