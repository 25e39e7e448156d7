"""What kind of feature each row of a features' table is, where the table or the name of its modality says so."""

from __future__ import annotations

import pandas as pd

MODALITY = "modality"
"""The reserved column of `Source.var`."""

TERMS = {"Gene Expression": "rna", "Peaks": "atac", "Antibody Capture": "protein"}
_NAMES = {
    "rna": ("rna", "gex", "gene", "genes", "transcriptome", "gene expression", "mrna"),
    "atac": ("atac", "peaks", "atac_peaks", "chromatin"),
    "protein": ("protein", "proteins", "prot", "adt", "cite", "citeseq", "antibody", "antibody capture", "ab"),
}
_COLUMNS = ("feature_types", "feature_type")


def with_modality(var: pd.DataFrame) -> pd.DataFrame:
    """Return the table with the column ``modality``, if a column of it speaks of feature types.

    Types that have no modality keep their own text. A column ``modality`` that the file has for its own purposes is
    left out.
    """
    known = set(TERMS.values())
    if MODALITY in var.columns:
        if set(var[MODALITY].dropna().unique()) <= known and not var[MODALITY].isna().any():
            return var
        var = var.drop(columns=MODALITY)
    for name in _COLUMNS:
        if name in var.columns and (found := set(map(str, var[name].dropna().unique()))) & set(TERMS):
            # Tables that were joined have gaps; where all the rest are genes, so are these.
            gap = "rna" if found == {"Gene Expression"} else "unknown"
            text = [gap if pd.isna(value) else TERMS.get(str(value), str(value)) for value in var[name]]
            return var.assign(**{MODALITY: text})
    return var


def modality_of_name(name: str) -> str:
    """Return the modality that a part of a file is called after, or the name itself where it is another thing."""
    return next((modality for modality, names in _NAMES.items() if name.lower() in names), name)
