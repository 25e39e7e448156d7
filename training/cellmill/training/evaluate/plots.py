"""Figures of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import numpy.typing as npt

from cellmill.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def loss_figure(metrics: Sequence[Mapping[str, Any]], *, parts: Sequence[str] = ()) -> Figure:
    """Draw the loss and its parts over the steps, with the learning rate beside it.

    Parameters
    ----------
    metrics
        Lines of a run's metrics, with ``step``, ``loss`` and ``lr``.
    parts
        Further metrics to draw, such as the parts of the loss; those that no line has are left out.
    """
    figure, axes = _axes(7, 4)
    steps = [line["step"] for line in metrics]
    for name in ["loss", *(part for part in parts if any(part in line for line in metrics))]:
        axes.plot(steps, [line.get(name, np.nan) for line in metrics], label=name, lw=1.8 if name == "loss" else 1.0)
    axes.set(xlabel="step", ylabel="loss a target", xlim=(0, max(steps, default=1)))
    axes.legend(frameon=False, loc="upper right")
    right = axes.twinx()
    right.plot(steps, [line.get("lr", np.nan) for line in metrics], color="0.75", lw=1.0)
    right.set_ylabel("learning rate", color="0.5")
    right.tick_params(axis="y", colors="0.5")
    axes.set_zorder(right.get_zorder() + 1)
    axes.patch.set_visible(False)
    return figure


def confusion_figure(table: npt.NDArray[np.int64], names: Sequence[str]) -> Figure:
    """Draw a confusion matrix: rows are true classes, shares along each row, counts in the cells.

    Parameters
    ----------
    table
        int64[classes, classes], true by predicted.
    names
        Names of the classes, in the order of the table.
    """
    size = 2.5 + 0.42 * len(names)
    figure, axes = _axes(size + 1, size)
    totals = table.sum(axis=1, keepdims=True)
    share = np.divide(table, totals, out=np.zeros(table.shape), where=totals > 0)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for i, j in zip(*np.nonzero(table), strict=True):
        axes.text(
            j, i, str(table[i, j]), ha="center", va="center", fontsize=7, color="white" if share[i, j] > 0.5 else "0.2"
        )
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set(xlabel="predicted", ylabel="true")
    return figure


def umap_figure(adata: ad.AnnData, *, color: str | None = None, key: str = "X_cellmill") -> Figure:
    """Draw a UMAP of the embeddings; the coordinates are kept in ``obsm['X_umap']``.

    Parameters
    ----------
    adata
        Cells with embeddings.
    color
        Column of ``obs`` to colour by.
    key
        Key of the embeddings in ``obsm``.

    Raises
    ------
    ConfigError
        The embeddings or the column are missing, or there are fewer than three cells.
    """
    if key not in adata.obsm:
        raise ConfigError(f"There are no embeddings in obsm[{key!r}].", where="obsm", fix="Run `cellmill embed` first.")
    if color is not None and color not in adata.obs:
        known = ", ".join(map(str, adata.obs.columns))
        raise ConfigError(f"There is no column {color!r}.", where="obs", fix=f"Columns: {known}.")
    if adata.n_obs < 3:
        raise ConfigError("A UMAP needs at least three cells.", where="obs")
    adata.obsm["X_umap"] = _umap(np.asarray(adata.obsm[key], dtype=np.float32))
    figure, axes = _axes(7, 5)
    points = adata.obsm["X_umap"]
    size = float(np.clip(20_000 / adata.n_obs, 1, 14))
    if color is None:
        axes.scatter(points[:, 0], points[:, 1], s=size, lw=0)
    else:
        _scatter_classes(axes, points, adata.obs[color].astype(str).to_numpy(), size)
    axes.set(xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2", title=color or "")
    return figure


def _umap(embeddings: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from umap import UMAP

        neighbours = min(15, len(embeddings) - 1)
        init = "spectral" if len(embeddings) > 50 else "random"
        reducer = UMAP(n_neighbors=neighbours, metric="cosine", random_state=0, init=init, n_jobs=1)
        return np.asarray(reducer.fit_transform(embeddings), dtype=np.float32)


def _scatter_classes(axes: Any, points: npt.NDArray[np.float32], labels: npt.NDArray[Any], size: float) -> None:
    from matplotlib import colormaps

    names = sorted(set(labels))
    palette = colormaps["tab20"](range(20)) if len(names) <= 20 else colormaps["gist_ncar"](_spread(len(names)))
    for name, colour in zip(names, palette, strict=False):
        here = labels == name
        axes.scatter(points[here, 0], points[here, 1], s=size, lw=0, color=[colour], label=name)
    axes.legend(frameon=False, fontsize=7, markerscale=2, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _spread(n: int) -> npt.NDArray[np.float64]:
    return np.linspace(0, 0.95, n)


def _axes(width: float, height: float) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure  # not through pyplot, whose backend belongs to the user

    figure = Figure(figsize=(width, height))
    return figure, figure.subplots()
