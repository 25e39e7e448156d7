"""Pictures of an ingestion."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from cellmill.ingestion.dataset_report import DatasetReport, labels

# Okabe and Ito's palette, which colour-blind readers can tell apart.
_COLOURS = ("#0072b2", "#56b4e9", "#009e73", "#e69f00", "#d55e00", "#cc79a7", "#f0e442", "#999999", "#000000")


def gene_figure(reports: Sequence[DatasetReport]) -> Figure:
    """Return bars of what became of each data set's genes and UMIs, as shares."""
    figure = Figure(figsize=(9, 1.6 + 0.45 * len(reports)))
    axes = figure.subplots(1, 2, sharey=True)
    statuses = list(dict.fromkeys(str(s) for report in reports for s in report.genes.genes))
    for panel, title in zip(axes, ("genes", "umis"), strict=True):
        left = np.zeros(len(reports))
        for number, status in enumerate(statuses):
            shares = np.array([_share(getattr(report.genes, title), status) for report in reports])
            panel.barh(range(len(reports)), shares, left=left, color=_COLOURS[number % len(_COLOURS)], label=status)
            left += shares
        panel.set_xlim(0, 1)
        panel.set_xlabel(f"share of {'UMIs' if title == 'umis' else 'genes'}")
    axes[0].set_yticks(range(len(reports)), labels(list(reports)))
    axes[0].invert_yaxis()
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=5, frameon=False
    )
    figure.tight_layout()
    return figure


def _share(values: dict[object, float], status: str) -> float:
    by_name = {str(key): float(value) for key, value in values.items()}
    total = sum(by_name.values())
    return by_name.get(status, 0.0) / total if total else 0.0


def cell_figure(reports: Sequence[DatasetReport]) -> Figure:
    """Return bars of how many cells of each data set were kept and left out."""
    figure = Figure(figsize=(9, 1.4 + 0.45 * len(reports)))
    axes = figure.subplots()
    positions = range(len(reports))
    left = np.array([report.cells_out for report in reports], dtype=float)
    axes.barh(positions, left, color=_COLOURS[0], label="kept")
    reasons = list(dict.fromkeys(reason for report in reports for reason in report.dropped))
    for number, reason in enumerate(reasons):
        cells = np.array([report.dropped.get(reason, 0) for report in reports], dtype=float)
        axes.barh(positions, cells, left=left, color=_COLOURS[3 + number % 6], label=reason)
        left += cells
    axes.set_yticks(positions, labels(list(reports)))
    axes.invert_yaxis()
    axes.set_xlabel("cells")
    axes.legend(frameon=False)
    figure.tight_layout()
    return figure
