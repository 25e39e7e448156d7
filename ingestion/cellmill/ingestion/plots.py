"""Pictures of an ingestion: what became of genes, UMIs and cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from cellmill.genes.status import Status
from cellmill.ingestion.dataset_report import DatasetReport, labels, parts
from cellmill.ingestion.flows import draw_flows


def gene_figure(reports: Sequence[DatasetReport]) -> Figure:
    """Return where each data set's genes and UMIs went, by what their names were recognised as."""
    figure = Figure(figsize=(16, _height(reports)))
    genes, umis = figure.subplots(1, 2)
    by_name = parts(list(reports))
    draw_flows(genes, {name: _named(part.genes) for name, part in by_name.items()}, "features")
    draw_flows(umis, {name: _named(part.umis) for name, part in by_name.items()}, "UMIs")
    return figure


def cell_figure(reports: Sequence[DatasetReport]) -> Figure:
    """Return how many cells of each data set were kept, and why others were not."""
    figure = Figure(figsize=(8, _height(reports)))
    flows = {
        name: {"kept": float(report.cells_out), **{reason: float(n) for reason, n in report.dropped.items()}}
        for name, report in zip(labels(list(reports)), reports, strict=True)
    }
    draw_flows(figure.subplots(), flows, "cells")
    return figure


def _height(reports: Sequence[DatasetReport]) -> float:
    return 3.0 + 0.25 * min(len(reports), 12)


def _named(values: Mapping[Status, int] | Mapping[Status, float]) -> dict[str, float]:
    return {str(key).replace("_", " "): float(value) for key, value in values.items()}
