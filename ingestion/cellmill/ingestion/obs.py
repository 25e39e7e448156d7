"""Columns of obs that are kept, as Arrow columns."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import pyarrow as pa

from cellmill.atlas.cells import FIXED, VIRTUAL

CELLXGENE_COLUMNS = (
    "assay",
    "assay_ontology_term_id",
    "cell_type",
    "cell_type_ontology_term_id",
    "development_stage",
    "development_stage_ontology_term_id",
    "disease",
    "disease_ontology_term_id",
    "donor_id",
    "is_primary_data",
    "self_reported_ethnicity",
    "self_reported_ethnicity_ontology_term_id",
    "sex",
    "sex_ontology_term_id",
    "suspension_type",
    "tissue",
    "tissue_ontology_term_id",
    "tissue_type",
)
"""Columns of the CELLxGENE schema; they are kept under their own names."""


def obs_table(obs: pd.DataFrame, renamed: Mapping[str, str]) -> dict[str, pa.Array]:
    """Return the kept columns by their names in the atlas.

    Text and categories become dictionaries of strings, numbers and booleans stay what they are; missing values stay
    missing. A column that would shadow one of the atlas's own is kept with ``source_`` before its name.

    Parameters
    ----------
    obs
        The cells' table of the source.
    renamed
        Columns that were asked for: name in the source, name in the atlas.
    """
    schema = {name: name for name in CELLXGENE_COLUMNS if name in obs.columns and name not in renamed}
    kept = {}
    for source, target in {**schema, **renamed}.items():
        name = f"source_{target}" if target in FIXED.names or target in VIRTUAL else target
        kept[name] = _column(obs[source])
    return kept


def _column(values: pd.Series) -> pa.Array:
    numeric = pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values)
    if numeric and not isinstance(values.dtype, pd.CategoricalDtype):
        return pa.array(values.to_numpy(), from_pandas=True)
    missing = values.isna().to_numpy()
    text = values.astype(object).map(str).to_numpy()
    return pa.array(text, mask=missing, type=pa.string()).dictionary_encode()
