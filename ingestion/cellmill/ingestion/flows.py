"""A Sankey diagram: from each data set to what became of its genes, UMIs or cells."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import PathPatch
from matplotlib.path import Path

# Okabe and Ito's palette, which colour-blind readers can tell apart.
COLOURS = ("#0072b2", "#56b4e9", "#009e73", "#e69f00", "#d55e00", "#cc79a7", "#f0e442", "#999999", "#000000")
_MOST_SOURCES = 12
_GAP = 0.055
"""Between bars, as a share of the height: room for a label, unless there are so many that it would fill the half."""
_BAR = 0.03
_INK = "#1d2530"


def draw_flows(axes: Axes, flows: Mapping[str, Mapping[str, float]], title: str) -> None:
    """Draw flows from sources on the left to fates on the right, as wide as they are large.

    Parameters
    ----------
    axes
        Where to draw.
    flows
        Amounts by source, then by fate; zero is not drawn. Of more than twelve sources the smallest are drawn as one.
    title
        What flows.
    """
    flows = _few(flows)
    fates = list(dict.fromkeys(fate for row in flows.values() for fate, n in row.items() if n))
    amounts = np.array([[float(row.get(fate, 0.0)) for fate in fates] for row in flows.values()])
    axes.set_title(title, loc="left")
    axes.set_axis_off()
    if not amounts.sum():
        return
    gap = min(_GAP, 0.5 / max(amounts.shape))
    scale = (1 - gap * (max(amounts.shape) - 1)) / amounts.sum()
    left, right = _tops(amounts.sum(axis=1) * scale, gap), _tops(amounts.sum(axis=0) * scale, gap)
    for i, name in enumerate(flows):
        _bar(axes, -_BAR, left[i], amounts[i].sum() * scale, "#5b6673")
        axes.text(-2 * _BAR, left[i] - amounts[i].sum() * scale / 2, name, ha="right", va="center", color=_INK)
    for j, fate in enumerate(fates):
        total = amounts[:, j].sum()
        _bar(axes, 1, right[j], total * scale, COLOURS[j % len(COLOURS)])
        label = f"{fate}  {_short(total)} ({total / amounts.sum():.1%})"
        axes.text(1 + 2 * _BAR, right[j] - total * scale / 2, label, ha="left", va="center", color=_INK)
    for i in range(len(flows)):
        for j in range(len(fates)):
            width = amounts[i, j] * scale
            if width:
                _ribbon(axes, left[i], right[j], width, COLOURS[j % len(COLOURS)])
            left[i] -= width
            right[j] -= width
    axes.set_xlim(-0.45, 1.75)
    axes.set_ylim(-0.02, 1.02)


def _few(flows: Mapping[str, Mapping[str, float]]) -> dict[str, Mapping[str, float]]:
    if len(flows) <= _MOST_SOURCES:
        return dict(flows)
    ordered = sorted(flows.items(), key=lambda item: -sum(item[1].values()))
    rest: dict[str, float] = {}
    for _, row in ordered[_MOST_SOURCES - 1 :]:
        for fate, n in row.items():
            rest[fate] = rest.get(fate, 0.0) + n
    few: dict[str, Mapping[str, float]] = dict(ordered[: _MOST_SOURCES - 1])
    return few | {f"{len(flows) - _MOST_SOURCES + 1} more": rest}


def _tops(heights: np.ndarray, gap: float) -> np.ndarray:
    """Return the upper ends of bars that hang below each other."""
    return 1 - np.concatenate([[0.0], np.cumsum(heights + gap)[:-1]])


def _bar(axes: Axes, x: float, top: float, height: float, colour: str) -> None:
    axes.bar(x, height, width=_BAR, bottom=top - height, align="edge", color=colour)


def _ribbon(axes: Axes, left: float, right: float, width: float, colour: str) -> None:
    points = [
        (0, left),
        (0.5, left),
        (0.5, right),
        (1, right),
        (1, right - width),
        (0.5, right - width),
        (0.5, left - width),
        (0, left - width),
        (0, left),
    ]
    codes = [Path.MOVETO, *[Path.CURVE4] * 3, Path.LINETO, *[Path.CURVE4] * 3, Path.CLOSEPOLY]
    axes.add_patch(PathPatch(Path(points, codes), facecolor=colour, edgecolor="none", alpha=0.45))


def _short(number: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"
