"""The report of an ingestion for people: one HTML file that needs nothing beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cellmill.ingestion.dataset_report import DatasetReport, labels
from cellmill.report import Figure, Section, Table, write_page


def write_report(output: Path, snapshot: str, reports: Sequence[DatasetReport], plots: Path) -> Path:
    """Write what happened to each data set, with licence and provenance.

    Parameters
    ----------
    output
        The HTML file.
    snapshot
        Which snapshot of which atlas holds the result.
    reports
        One for each source that was read.
    plots
        Folder with the run's pictures.
    """
    names = labels(list(reports))
    overview = Section(
        title="All data sets",
        text=(f"The result is {snapshot}.",),
        tables=(_overview(names, reports),),
        figures=tuple(Figure(path=path, caption=path.stem.replace("_", " ")) for path in sorted(plots.glob("*.png"))),
    )
    sections = [overview, *(_section(name, report) for name, report in zip(names, reports, strict=True))]
    lead = "What happened to genes, UMIs and cells on the way into the atlas."
    return write_page(output, "Ingestion report", sections, lead=lead)


def _overview(names: Sequence[str], reports: Sequence[DatasetReport]) -> Table:
    header = ("data set", "organism", "licence", "cells in", "cells kept", "features in", "kept", "UMIs lost")
    rows = tuple(
        (
            name,
            report.organism,
            report.licence,
            f"{report.cells_in:,}",
            f"{report.cells_out:,}",
            f"{report.genes.genes_in:,}",
            f"{report.genes.genes_out:,}",
            f"{report.genes.umis_lost:.2%}",
        )
        for name, report in zip(names, reports, strict=True)
    )
    return Table(header=header, rows=rows)


def _section(name: str, report: DatasetReport) -> Section:
    genes = report.genes
    provenance = Table(
        header=("provenance", ""),
        rows=(
            ("file", report.url),
            ("sha256", report.sha256),
            ("licence", report.licence),
            ("raw counts in", report.counts),
            ("organism", report.organism),
            ("gene table", genes.release),
        ),
    )
    total = sum(genes.umis.values()) or 1.0
    fates = Table(
        header=("names were", "genes", "UMIs", "share of UMIs", "for instance"),
        rows=tuple(
            (
                str(status).replace("_", " "),
                f"{n:,}",
                f"{genes.umis.get(status, 0.0):,.0f}",
                f"{genes.umis.get(status, 0.0) / total:.2%}",
                ", ".join(genes.examples.get(status, ())[:5]),
            )
            for status, n in genes.genes.items()
            if n
        ),
    )
    cells = Table(
        header=("cells", "n"),
        rows=(
            ("read", f"{report.cells_in:,}"),
            *((reason, f"{n:,}") for reason, n in report.dropped.items()),
            ("kept", f"{report.cells_out:,}"),
            *((f"marked as duplicate of a cell in {owner}", f"{n:,}") for owner, n in report.marked.items()),
        ),
    )
    text = [f"{genes.summed:,} columns were added to another column of the same gene."] if genes.summed else []
    if genes.conflicts:
        text.append(f"{genes.conflicts:,} columns have an id and a symbol of different genes; the id decided.")
    return Section(title=name, text=tuple(text), tables=(provenance, fates, cells))
