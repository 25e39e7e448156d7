"""A run's directory becomes one section of a report."""

from __future__ import annotations

from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console

from cellmill.lineage import Lineage
from cellmill.report.page import Figure, Section, Table
from cellmill.runs import Run

_TITLES = {"ingest": "Ingestion", "pretrain": "Pretraining", "finetune": "Fine-tuning", "demo": "Demo"}


def run_section(directory: Path, *, title: str = "", text: tuple[str, ...] = ()) -> Section:
    """Return a section with a run's summary, plots, resolved configuration and lineage.

    Raises
    ------
    SourceError
        The directory holds no run.
    """
    run = Run.open(directory)
    details = {"Resolved configuration": (run.path / "config.yaml").read_text()}
    if (run.path / "lineage.json").exists():
        details["Lineage"] = lineage_text(run.read_lineage())
    figures = tuple(
        Figure(path=path, caption=path.stem.replace("_", " ")) for path in sorted((run.path / "plots").glob("*.png"))
    )
    return Section(
        title=title or f"{_TITLES.get(run.kind, run.kind)}: {run.path.name}",
        text=text,
        tables=summary_tables(run.read_summary()),
        figures=figures,
        details=details,
    )


def summary_tables(summary: Mapping[str, Any]) -> tuple[Table, ...]:
    """Return the single values of a summary as one table, and each mapping of mappings as a table of its own."""
    single = [(key, _show(value)) for key, value in summary.items() if not isinstance(value, (dict, list))]
    tables = [Table(header=("", ""), rows=tuple(single))] if single else []
    for key, value in summary.items():
        if isinstance(value, dict) and value and all(isinstance(row, dict) for row in value.values()):
            columns = list(dict.fromkeys(column for row in value.values() for column in row))
            rows = tuple((name, *(_show(row.get(column, "")) for column in columns)) for name, row in value.items())
            tables.append(Table(header=(key, *columns), rows=rows))
    return tuple(tables)


def lineage_text(lineage: Lineage) -> str:
    """Return a lineage tree as plain text."""
    buffer = StringIO()
    Console(file=buffer, width=140, no_color=True, markup=False, emoji=False).print(lineage.tree())
    return buffer.getvalue()


def _show(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
