"""The report of an ingestion for people: one HTML file that needs nothing beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cellmill.genes import GeneReport
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
    header = (
        "data set",
        "organism",
        "licence",
        "cells in",
        "cells kept",
        "modality",
        "features in",
        "kept",
        "UMIs lost",
    )
    rows = tuple(
        (
            name,
            report.organism,
            report.licence,
            f"{report.cells_in:,}",
            f"{report.cells_out:,}",
            part.modality,
            f"{part.genes_in:,}",
            f"{part.genes_out:,}",
            f"{part.umis_lost:.2%}",
        )
        for name, report in zip(names, reports, strict=True)
        for part in report.parts
    )
    return Table(header=header, rows=rows)


def _section(name: str, report: DatasetReport) -> Section:
    provenance = Table(
        header=("provenance", ""),
        rows=(
            ("file", report.url),
            ("BLAKE3", report.source_digest),
            ("licence", report.licence),
            ("raw counts in", report.counts),
            ("organism", report.organism),
            *((f"release of {part.modality}", part.release) for part in report.parts if part.release),
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
    text = [line for part in report.parts for line in _remarks(part)]
    text += [f"{n:,} cells are {which}." for which, n in report.unpaired.items()]
    text += [f"There are counts in {place}, too, that nobody asked for: not read." for place in report.unread]
    text += [f"Mind that {line}" for line in report.untold_lines]
    text.append(f"{report.hash_bytes_read:,} bytes of the index of content hashes were read to find duplicates.")
    tables = (provenance, *(_fates(part) for part in report.parts), cells)
    return Section(title=name, text=tuple(text), tables=tables)


def _fates(part: GeneReport) -> Table:
    """Return what became of the features of one modality."""
    total = sum(part.umis.values()) or 1.0
    rows = tuple(
        (
            str(status).replace("_", " "),
            f"{n:,}",
            f"{part.umis.get(status, 0.0):,.0f}",
            f"{part.umis.get(status, 0.0) / total:.2%}",
            ", ".join(part.examples.get(status, ())[:5]),
        )
        for status, n in part.genes.items()
        if n
    )
    return Table(header=(f"{part.modality} names were", "features", "UMIs", "share of UMIs", "for instance"), rows=rows)


def _remarks(part: GeneReport) -> list[str]:
    found = []
    if part.summed:
        found.append(
            f"{part.summed:,} columns ({part.modality}) with {part.umis_summed:,.0f} UMIs were added to another column "
            "of the same feature."
        )
    if part.conflicts:
        found.append(f"{part.conflicts:,} columns have an id and a symbol of different genes; the id decided.")
    if part.binarised:
        found.append("Counts of peaks above 1 are stored as 1.")
    return found
