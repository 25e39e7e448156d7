"""Highly variable genes, out of core: the dispersion method of Cell Ranger (Zheng et al. 2017)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cellmill.errors import ConfigError
from cellmill.tokens.block import CellBlock
from cellmill.tokens.modalities import Modalities
from cellmill.tokens.moments import GeneMoments

if TYPE_CHECKING:
    from cellmill.atlas import Selection

F64 = npt.NDArray[np.float64]

_CELLS_AT_ONCE = 8192
_MAD_OF_NORMAL = 0.6744897501960817  # Median absolute deviation of the standard normal distribution.


def highly_variable(
    selection: Selection,
    *,
    n_top: int,
    batch_key: str | None = None,
    modality: str = "rna",
    normalize_total: float = 1e4,
    skipped: dict[str, int] | None = None,
) -> npt.NDArray[np.uint32]:
    """Return the tokens of the most variable genes of a selection, the most variable first.

    Counts are scaled per cell and modality, and logarithmised; `rank_variable` then ranks. Cells are read once, a few
    thousand at a time, so that memory does not grow with their number; it holds 24 bytes for each batch and token of
    the vocabulary. Genes that no cell expresses are never chosen.

    Parameters
    ----------
    selection
        The cells.
    n_top
        Number of genes; fewer are returned if fewer have a dispersion.
    batch_key
        Column of the cells; genes are then chosen within each batch, and ranked by how many batches choose them.
        Cells without a value are a batch of their own.
    modality
        Of the genes, or other features, that are chosen from.
    normalize_total
        Sum that the counts of a cell in a modality are scaled to before the logarithm.
    skipped
        If given, shards that are missing or damaged (``dataset/digest``) are left out as wholes, and noted here with
        the number of their selected cells.

    Returns
    -------
    uint32 [n_top]

    Raises
    ------
    ConfigError
        No cell is selected, the column does not exist, or no feature is of the modality.
    IntegrityError
        A shard is missing or damaged, and `skipped` is not given; or none is left.
    """
    if selection.n_cells == 0:
        raise ConfigError("No cell is selected.", where=f"where: {selection.where}", fix="Widen the predicate.")
    if skipped is not None:
        from cellmill.atlas.sound import sound_part

        selection = sound_part(selection, skipped)
    modalities = Modalities.of(selection.snapshot.atlas.vocabulary())
    if modality not in modalities.names:
        raise ConfigError(
            f"No feature of the atlas is of the modality {modality!r}.",
            where="modality",
            fix=f"There are: {', '.join(modalities.names)}.",
        )
    batches = _batches(selection, batch_key)
    n_tokens = max(entry.vocabulary_size for entry in selection.shards)
    moments = GeneMoments(n_tokens, max(1, len(batches)), normalize_total=normalize_total, modalities=modalities)
    for i in range(len(selection.shards)):
        codes = _codes(selection, i, batch_key, batches)
        for start, block in _blocks(selection, i):
            moments.add(block, codes[start : start + block.n_cells])
    others = modalities.of_token[:n_tokens] != modalities.names.index(modality)
    moments.expressed[:, others] = 0
    return rank_variable(moments, n_top)


def rank_variable(moments: GeneMoments, n_top: int) -> npt.NDArray[np.uint32]:
    """Return the most variable tokens, the most variable first.

    Within a batch, over the genes expressed there: dispersion = variance / mean; genes are binned by the 5 % quantiles
    of their means above the tenth; the normalised dispersion is (dispersion - median of the bin) / MAD of the bin. A
    batch chooses its `n_top` largest. Over batches, genes are ranked by the number of batches that choose them, then
    by the mean of their normalised dispersions (0 where a batch does not express them). With one batch that is
    scanpy's ``highly_variable_genes(flavor="cell_ranger")`` over expressed genes, and with several its ``batch_key``.

    Parameters
    ----------
    moments
        Of the genes.
    n_top
        Number of genes.
    """
    n_batches, n_tokens = moments.total.shape
    chosen = np.zeros(n_tokens, np.int64)
    norms = np.zeros((n_batches, n_tokens))
    for batch in range(n_batches):
        found = np.flatnonzero(moments.expressed[batch])
        if not found.size:
            continue
        mean, variance = moments.moments(batch)
        norm = normalised_dispersion(mean[found], variance[found])
        norms[batch, found] = norm
        finite = np.sort(norm[~np.isnan(norm)])[::-1]
        if finite.size:
            chosen[found] += np.nan_to_num(norm, nan=-np.inf) >= finite[min(n_top, finite.size) - 1]
    known = ~np.isnan(norms)
    with np.errstate(invalid="ignore", divide="ignore"):
        average = np.where(known, norms, 0.0).sum(axis=0) / known.sum(axis=0)
    tokens = np.flatnonzero(moments.expressed.any(axis=0) & ~np.isnan(average))
    order = np.lexsort((tokens, -average[tokens], -chosen[tokens]))
    return tokens[order[:n_top]].astype(np.uint32)


def normalised_dispersion(mean: F64, variance: F64) -> F64:
    """Return how far each gene's dispersion is from those of genes of like mean, float64 [n]; see `rank_variable`.

    Parameters
    ----------
    mean, variance : float64 [n]
        Of genes that are expressed.
    """
    dispersion = variance / mean
    edges = np.unique(np.percentile(mean, np.arange(10, 105, 5)))
    group = np.searchsorted(edges, mean, side="left")
    norm = np.empty_like(dispersion)
    for number in np.unique(group):
        members = group == number
        inside = dispersion[members]
        median = np.median(inside)
        spread = np.median(np.abs(inside - median)) / _MAD_OF_NORMAL
        with np.errstate(divide="ignore", invalid="ignore"):
            norm[members] = (inside - median) / spread
    return norm


def _batches(selection: Selection, batch_key: str | None) -> pa.Array:
    """Return the values of the column, as text; null is one if cells have none."""
    if batch_key is None:
        return pa.array([], pa.string())
    texts = pc.cast(pa.array(list(selection.value_counts(batch_key))), pa.string())
    return texts.take(pc.sort_indices(texts))


def _codes(selection: Selection, i: int, batch_key: str | None, batches: pa.Array) -> npt.NDArray[np.int32]:
    """Return the batch of each selected cell of a shard, int32 [n]."""
    if batch_key is None:
        return np.zeros(int(selection.counts[i]), np.int32)
    column = pc.cast(selection.table(i, [batch_key]).column(0), pa.string())
    found: npt.NDArray[np.int32] = pc.index_in(column, value_set=batches).to_numpy()
    return found


def _blocks(selection: Selection, i: int) -> Iterator[tuple[int, CellBlock]]:
    """Yield the selected cells of a shard, with the place of the first among them."""
    from cellmill.atlas import open_shard

    entry = selection.shards[i]
    shard = open_shard(selection.snapshot.atlas.storage, entry)
    rows = selection.rows(i)
    all_rows = np.arange(entry.n_rows, dtype=np.int64) if rows is None else rows.astype(np.int64)
    for start in range(0, all_rows.size, _CELLS_AT_ONCE):
        wanted = all_rows[start : start + _CELLS_AT_ONCE]
        apart = np.flatnonzero(np.diff(wanted) != 1)
        starts = np.concatenate([wanted[:1], wanted[apart + 1]])
        stops = np.concatenate([wanted[apart], wanted[-1:]]) + 1
        columns, counts, indptr = shard.gather(starts, stops)
        yield start, CellBlock(shard.tokens[columns], counts, indptr, np.zeros(wanted.size, np.uint64))
