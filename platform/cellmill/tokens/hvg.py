"""Highly variable genes of a selection, computed shard by shard in bounded memory."""

from __future__ import annotations

import warnings
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import pandas as pd

from cellmill.atlas import Selection, open_shard

F64 = npt.NDArray[np.float64]

TARGET_SUM = 1e4
"""Counts of a cell are scaled to this sum before the logarithm."""
_ROWS = 8192
_MAD_SCALE = 0.6744897501960817  # of a normal distribution's median absolute deviation


class GeneSums:
    """Sums over the cells of one batch: of values, of their squares, and of cells that express the gene."""

    def __init__(self, n_tokens: int) -> None:
        self.n_cells = 0
        self.total = np.zeros(n_tokens)
        self.squares = np.zeros(n_tokens)
        self.cells = np.zeros(n_tokens, np.int64)

    def add(self, tokens: npt.NDArray[np.uint32], columns: Any, counts: Any, indptr: npt.NDArray[np.int64]) -> None:
        """Add cells, as CSR over a shard's columns."""
        self.n_cells += len(indptr) - 1
        _add(tokens, columns, counts, indptr, self.total, self.squares, self.cells)


def highly_variable(selection: Selection, *, n_top: int, batch_key: str | None = None) -> npt.NDArray[np.uint32]:
    """Choose the genes whose dispersion is largest for their mean.

    The ``cell_ranger`` flavour (Zheng et al., Nature Communications 2017): dispersion of log1p-normalised values,
    standardised by median and median absolute deviation within 20 bins of the mean. With a batch key genes are chosen
    within each batch and ranked by how many batches chose them, then by their mean standardised dispersion.

    Parameters
    ----------
    selection
        The cells.
    n_top
        Number of genes; fewer if fewer are expressed.
    batch_key
        Column of the cells' metadata.

    Returns
    -------
    uint32 [n]
        Tokens, the most variable first.

    Raises
    ------
    ConfigError
        The batch key is no column.
    """
    sums = _sums(selection, batch_key)
    norms = np.stack([_standardised(batch) for batch in sums])
    if len(sums) == 1:
        order = _descending(norms[0])
        chosen = order[: min(n_top, int(np.isfinite(norms[0]).sum()))]
        return chosen.astype(np.uint32)
    picked = np.zeros(norms.shape, bool)
    for batch, norm in enumerate(norms):
        finite = np.sort(norm[np.isfinite(norm)])[::-1]
        cutoff = finite[min(n_top, len(finite)) - 1] if len(finite) else np.inf
        picked[batch] = np.nan_to_num(norm, nan=-np.inf) >= cutoff
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Mean of empty slice")
        mean = np.nanmean(norms, axis=0)
    rank = pd.DataFrame({"batches": picked.sum(axis=0), "norm": mean}).sort_values(
        ["batches", "norm"], ascending=False, na_position="last", kind="stable"
    )
    return rank.index.to_numpy()[: min(n_top, int(np.isfinite(mean).sum()))].astype(np.uint32)


def _sums(selection: Selection, batch_key: str | None) -> list[GeneSums]:
    n_tokens = max(entry.vocabulary_size for entry in selection.shards)
    batches = [np.asarray(values).astype(str) for values in selection.column(batch_key)] if batch_key else None
    names = sorted({str(name) for values in batches for name in np.unique(values)}) if batches else [""]
    sums = {name: GeneSums(n_tokens) for name in names}
    for number, entry in enumerate(selection.shards):
        shard = open_shard(selection.snapshot.atlas.storage, entry)
        selected = selection.rows(number)
        rows = np.arange(shard.n_rows) if selected is None else selected.astype(np.int64)
        for piece in range(0, len(rows), _ROWS):
            part = rows[piece : piece + _ROWS]
            codes = batches[number][piece : piece + _ROWS] if batches else np.full(len(part), "")
            for name in np.unique(codes):
                mine = part[codes == name]
                columns, counts, indptr = shard.gather(mine, mine + 1)
                sums[str(name)].add(shard.tokens, columns, counts, indptr)
    return [sums[name] for name in names]


def _standardised(sums: GeneSums) -> F64:
    """Return the standardised dispersion by token, NaN where the gene is not expressed."""
    out = np.full(len(sums.total), np.nan)
    there = np.flatnonzero(sums.cells)
    n = sums.n_cells
    mean = sums.total[there] / n
    variance = (sums.squares[there] / n - mean**2) * (n / max(n - 1, 1))
    mean[mean == 0] = 1e-12
    dispersion = variance / mean
    edges = np.r_[-np.inf, np.percentile(mean, np.arange(10, 105, 5)), np.inf]
    bins = np.searchsorted(np.unique(edges), mean, side="left")
    grouped = pd.Series(dispersion).groupby(bins)
    centre = grouped.transform("median").to_numpy()
    spread = pd.Series(np.abs(dispersion - centre)).groupby(bins).transform("median").to_numpy() / _MAD_SCALE
    with np.errstate(divide="ignore", invalid="ignore"):
        out[there] = (dispersion - centre) / spread
    out[~np.isfinite(out)] = np.nan
    return out


def _descending(values: F64) -> npt.NDArray[np.int64]:
    return np.argsort(-np.nan_to_num(values, nan=-np.inf), kind="stable")


@numba.njit(cache=True, nogil=True)
def _add(tokens: Any, columns: Any, counts: Any, indptr: Any, total: Any, squares: Any, cells: Any) -> None:
    for cell in range(len(indptr) - 1):
        depth = 0.0
        for i in range(indptr[cell], indptr[cell + 1]):
            depth += counts[i]
        for i in range(indptr[cell], indptr[cell + 1]):
            value = np.log1p(counts[i] / depth * TARGET_SUM)
            token = tokens[columns[i]]
            total[token] += value
            squares[token] += value * value
            cells[token] += 1
