"""Pictures of an ingestion: what became of genes, UMIs and cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from cellmill.genes import GeneReport
from cellmill.genes.status import Status
from cellmill.ingestion.dataset_report import DatasetReport, labels
from cellmill.ingestion.flows import draw_flows


def gene_figure(reports: Sequence[DatasetReport]) -> Figure:
    """Return where each data set's features and counts went, by what their names were recognised as.

    Each modality has a row of its own: a protein has a hundred times a gene's counts, and would hide those.
    """
    by_modality: dict[str, dict[str, GeneReport]] = {}
    for name, report in zip(labels(list(reports)), reports, strict=True):
        for part in report.parts:
            by_modality.setdefault(part.modality, {})[name] = part
    heights = [_height(len(of)) for of in by_modality.values()]
    figure = Figure(figsize=(16, sum(heights)))
    axes = figure.subplots(len(by_modality), 2, squeeze=False, height_ratios=heights)
    for (modality, of), (features, counts) in zip(by_modality.items(), axes, strict=True):
        draw_flows(features, {name: _named(part.genes) for name, part in of.items()}, f"features ({modality})")
        draw_flows(counts, {name: _named(part.umis) for name, part in of.items()}, f"UMIs ({modality})")
    return figure


def cell_figure(reports: Sequence[DatasetReport]) -> Figure:
    """Return how many cells of each data set were kept, and why others were not."""
    figure = Figure(figsize=(8, _height(len(reports))))
    flows = {
        name: {"kept": float(report.cells_out), **{reason: float(n) for reason, n in report.dropped.items()}}
        for name, report in zip(labels(list(reports)), reports, strict=True)
    }
    draw_flows(figure.subplots(), flows, "cells")
    return figure


def _height(n: int) -> float:
    """Return inches for so many data sets."""
    return 3.0 + 0.25 * min(n, 12)


def _named(values: Mapping[Status, int] | Mapping[Status, float]) -> dict[str, float]:
    return {str(key).replace("_", " "): float(value) for key, value in values.items()}
