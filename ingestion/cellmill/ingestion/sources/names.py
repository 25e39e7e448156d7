"""Which columns of a features' table hold gene names, where nobody says."""

from __future__ import annotations

import pandas as pd

from cellmill.ingestion.sources.base import INDEX

ID_COLUMNS = (
    "gene_ids",
    "gene_id",
    "ensembl_id",
    "ensembl_ids",
    "ensembl_gene_id",
    "ensembl",
    "feature_id",
    "feature_ids",
    "Accession",
)
SYMBOL_COLUMNS = (
    "feature_name",
    "gene_name",
    "gene_names",
    "gene_symbol",
    "gene_symbols",
    "symbol",
    "symbols",
    "hgnc_symbol",
    "Gene",
    "feature",
)
_SAMPLE = 1000


def names_in(var: pd.DataFrame) -> tuple[str, str | None]:
    """Return the columns with ids and symbols.

    The index, unless it only numbers the rows, or holds symbols beside a column of Ensembl ids, which are clearer.
    """
    ids = next((name for name in ID_COLUMNS if name in var.columns), None)
    symbols = next((name for name in SYMBOL_COLUMNS if name in var.columns), None)
    if not _numbers_rows(var.index):
        if ids is not None and _ensembl(var[ids]) > 0.5 > _ensembl(var.index.to_series()):
            return ids, INDEX
        # Ids that have been retired are followed by their symbols.
        return INDEX, symbols if _ensembl(var.index.to_series()) > 0.5 else None
    if ids is not None:
        return ids, symbols
    return (symbols, None) if symbols is not None else (INDEX, None)


def _numbers_rows(index: pd.Index) -> bool:
    return bool(pd.api.types.is_numeric_dtype(index)) or all(str(name).isdigit() for name in index[:_SAMPLE])


def _ensembl(names: pd.Series) -> float:
    sample = names.iloc[:_SAMPLE].astype(str)
    return float(sample.str.match(r"^ENS[A-Z]*G\d{6,}").mean()) if len(sample) else 0.0
