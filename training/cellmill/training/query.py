"""From an AnnData to the cells a model understands: find the counts, map the genes, refuse what does not fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import anndata as ad
import numpy as np
import numpy.typing as npt
from scipy import sparse

from cellmill.config import Config
from cellmill.counts import check_counts
from cellmill.errors import CountsError, GeneMappingError, ModelError
from cellmill.genes import GeneConfig, Vocabulary, detect_organism, harmonise
from cellmill.tokens import CellBlock, Conditions

SYMBOL_COLUMNS = ("symbol", "gene_symbol", "gene_symbols", "feature_name", "gene_name", "gene_names")
MIN_GENES_KNOWN = 0.1
"""Least share of a model's genes that the query must have measured."""
MAX_UMIS_LOST = 0.5
"""Largest share of the query's UMIs in genes that have no place in the gene table."""

Organism = Literal["human", "mouse"]


class QueryReport(Config):
    """What became of a query's genes and cells.

    Attributes
    ----------
    counts_from
        Where in the AnnData the counts were found.
    organism
        Organism of the model.
    genes_in
        Columns of the query.
    genes_used
        Genes of the model that the query has measured.
    genes_of_model
        Genes that the model looks at.
    umis_used
        Share of the query's UMIs in those genes.
    cells_with_condition
        Cells that have a condition which the model was told.
    """

    counts_from: str
    organism: str
    genes_in: int
    genes_used: int
    genes_of_model: int
    umis_used: float
    cells_with_condition: int = 0


@dataclass(frozen=True)
class Query:
    """Cells in the tokens of a model, what became of their genes, and their conditions, if the model knows any."""

    block: CellBlock
    report: QueryReport
    conditions: Conditions | None = None


def find_counts(adata: ad.AnnData, place: str = "auto") -> tuple[sparse.csr_matrix, Any, str]:
    """Return the raw counts of an AnnData.

    Parameters
    ----------
    adata
        The cells.
    place
        ``X``, ``raw.X`` or ``layers/NAME``; ``auto`` takes the first that holds counts, ``layers/counts`` first.

    Returns
    -------
    counts, var, place
        uint32 csr[cells x genes], the table of its genes, and where it was.

    Raises
    ------
    CountsError
        No place holds raw counts; the message gives the reason for each.
    """
    layers = [f"layers/{name}" for name in adata.layers]
    preferred = [name for name in layers if name == "layers/counts"]
    others = [*(["raw.X"] if adata.raw is not None else []), *(["X"] if adata.X is not None else [])]
    found = [*preferred, *others, *(name for name in layers if name not in preferred)]
    if place != "auto" and place not in found:
        raise CountsError(f"There is no matrix at {place!r}.", where="AnnData", fix=f"There are: {', '.join(found)}.")
    reasons: list[CountsError] = []
    for name in found if place == "auto" else [place]:
        matrix = sparse.csr_matrix(_matrix(adata, name), copy=True)
        try:
            matrix.data = check_counts(matrix.data, f"AnnData: {name}")
        except CountsError as error:
            reasons.append(error)
            continue
        matrix.sum_duplicates()
        matrix.eliminate_zeros()
        return matrix, adata.raw.var if name == "raw.X" else adata.var, name
    if not reasons:
        raise CountsError("The AnnData has no matrix.", where="AnnData", fix="It needs raw counts in X.")
    if len(reasons) == 1:
        raise reasons[0]
    what = "No matrix of the AnnData holds raw counts. " + " ".join(f"{e.where}: {e.what}" for e in reasons)
    raise CountsError(what, where="AnnData", fix=reasons[0].fix)


def to_query(
    adata: ad.AnnData, vocabulary: Vocabulary, panel: npt.NDArray[np.uint32] | None, *, place: str = "auto"
) -> Query:
    """Bring cells into the tokens of a model.

    The result holds the genes of the model's vocabulary in the order of their tokens, so that it does not depend on
    the order of columns. Genes outside the panel stay: a cell's counts are normalised by the sum over all of them, as
    in training.

    Parameters
    ----------
    adata
        The cells, with raw counts.
    vocabulary
        Of the model.
    panel
        Tokens that the model looks at; None means its whole vocabulary.
    place
        See `find_counts`.

    Raises
    ------
    CountsError
        There are no raw counts.
    GeneMappingError
        The genes are of another organism, too few of them are known, or a cell has none of them.
    """
    counts, var, found = find_counts(adata, place)
    names = [str(name) for name in var.index]
    organism = _organism(vocabulary)
    detected = detect_organism(names)
    if detected is not None and detected != organism:
        raise GeneMappingError(
            f"These are {detected} genes; the model was trained on {organism}.",
            where="AnnData: var",
            fix=f"Use a model for {detected}, or map the genes to their {organism} orthologs first.",
        )
    symbols = next((var[column].astype(str).tolist() for column in SYMBOL_COLUMNS if column in var), None)
    mapping = harmonise(names, organism=organism, symbols=symbols)
    umis = np.asarray(counts.sum(axis=0, dtype=np.float64)).ravel()
    mapping.report(umis).check(GeneConfig(max_genes_lost=1.0, max_umis_lost=MAX_UMIS_LOST), where="AnnData: var")

    tokens = vocabulary.lookup([feature.id for feature in mapping.features])
    known = tokens >= 0
    seen = known if panel is None else np.isin(tokens, panel)
    of_model, n_seen = len(vocabulary.features) if panel is None else len(panel), int(seen.sum())
    if n_seen < max(1, MIN_GENES_KNOWN * of_model):
        raise GeneMappingError(
            f"The query has {n_seen:,} of the model's {of_model:,} genes; at least {MIN_GENES_KNOWN:.0%} are needed.",
            where="AnnData: var",
            fix="Give all measured genes, not a selection of them, or use a model trained on such a panel.",
        )
    columns = np.flatnonzero(known)[np.argsort(tokens[known])]
    matrix = sparse.csr_matrix(mapping.apply(counts)[:, columns])
    matrix.sort_indices()
    inside = np.asarray(matrix[:, seen[columns]].sum(axis=1, dtype=np.float64)).ravel()
    empty = int((inside == 0).sum())
    if empty:
        raise GeneMappingError(
            f"{empty:,} of {matrix.shape[0]:,} cells have no count in any gene of the model.",
            where="AnnData: obs",
            fix="Remove empty cells first, for instance by a minimum number of genes.",
        )
    report = QueryReport(
        counts_from=found,
        organism=organism,
        genes_in=len(names),
        genes_used=n_seen,
        genes_of_model=of_model,
        umis_used=float(inside.sum() / max(umis.sum(), 1.0)),
    )
    return Query(CellBlock.from_csr(matrix, tokens[columns].astype(np.uint32)), report)


def _matrix(adata: ad.AnnData, place: str) -> Any:
    if place == "X":
        return adata.X
    return adata.raw.X if place == "raw.X" else adata.layers[place.removeprefix("layers/")]


def _organism(vocabulary: Vocabulary) -> Organism:
    found = {feature.organism for feature in vocabulary.features if feature.modality == "rna"}
    if found == {"human"}:
        return "human"
    if found == {"mouse"}:
        return "mouse"
    raise ModelError(f"The model's genes are of {sorted(found)}; one organism is needed.", where="vocabulary")
