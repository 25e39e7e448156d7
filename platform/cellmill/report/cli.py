"""`cellmill report`: runs on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cellmill.console import console, emit
from cellmill.report.page import write_page
from cellmill.report.sections import run_section


def report(
    runs: Annotated[list[Path], typer.Argument(help="Directories of runs, in the order of the page.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The HTML file to write.")] = Path("report.html"),
    title: Annotated[str, typer.Option(help="Heading of the page.")] = "Cellmill report",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Put runs (ingest, pretrain, finetune) into one self-contained HTML page."""
    page = write_page(output, title, [run_section(run) for run in runs])
    emit({"report": str(page.absolute())}, as_json, lambda: console.print(f"Wrote {page}"))
