"""Columns of obs that are kept, as Arrow columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa

from cellmill.atlas.cells import CATALOG, FIXED, VIRTUAL
from cellmill.errors import SourceError

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
    "ethnicity",
    "ethnicity_ontology_term_id",
    "genetic_perturbation_id",
    "genetic_perturbation_strategy",
    "is_primary_data",
    "observation_joinid",
    "organism_ontology_term_id",
    "self_reported_ethnicity",
    "self_reported_ethnicity_ontology_term_id",
    "sex",
    "sex_ontology_term_id",
    "suspension_type",
    "tissue",
    "tissue_ontology_term_id",
    "tissue_type",
)
"""Columns of the CELLxGENE schema, from version 1 to 7; they are kept under their own names.

All but one are text there, whatever their type in a file: donor 7 of one data set is '7' beside donor 'D7' of another.
"""
_TRUTH = "is_primary_data"
_WRITTEN = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


def renamed_columns(present: Sequence[str], wanted: Mapping[str, str] | Literal["all"]) -> dict[str, str]:
    """Return the columns that were asked for, and their names in the atlas."""
    return {name: name for name in present} if wanted == "all" else dict(wanted)


def kept_columns(present: Sequence[str], wanted: Mapping[str, str] | Literal["all"]) -> dict[str, str]:
    """Return the columns to keep, and their names in the atlas.

    Columns of the CELLxGENE schema are kept unless another column takes their name; a column that would shadow one
    of the atlas's own is kept with ``obs_`` before its name.

    Parameters
    ----------
    present
        Columns of the source.
    wanted
        Columns that were asked for: name in the source, name in the atlas.
    """
    renamed = renamed_columns(present, wanted)
    taken = {*renamed, *renamed.values()}
    schema = {name: name for name in CELLXGENE_COLUMNS if name in present and name not in taken}
    own = {*FIXED.names, *CATALOG, *VIRTUAL}
    return {source: f"obs_{target}" if target in own else target for source, target in {**schema, **renamed}.items()}


def obs_table(obs: pd.DataFrame, columns: Mapping[str, str], *, where: str) -> dict[str, pa.Array]:
    """Return columns by their names in the atlas.

    Text and categories become dictionaries of strings, and so do columns of the CELLxGENE schema of any type, but for
    `is_primary_data`, which becomes truth values; other numbers and booleans stay what they are. Missing values stay
    missing.

    Parameters
    ----------
    obs
        The cells' table of the source.
    columns
        Names in the atlas, and of the columns of it.
    where
        The source, for messages.

    Raises
    ------
    SourceError
        A value of `is_primary_data` is neither true nor false.
    """
    text = {*CELLXGENE_COLUMNS} - {_TRUTH}
    return {
        target: _truth(obs[source], where) if target == _TRUTH else _column(obs[source], as_text=target in text)
        for target, source in columns.items()
    }


def _truth(values: pd.Series, where: str) -> pa.Array:
    """Return truth values, however they are written: true and false in any case, and 1 and 0."""
    written = values.astype(object).map(lambda value: _WRITTEN.get(str(value).strip().lower()))
    missing = values.isna().to_numpy()
    if (strange := written.isna().to_numpy() & ~missing).any():
        raise SourceError(
            f"{values.name!r} holds {str(values[strange].iloc[0])!r}, which is neither true nor false.",
            where=where,
            fix=f"Write true or false, or keep the column under another name: obs: {{{values.name}: NAME}}.",
        )
    return pa.array(written.to_numpy(), mask=missing, type=pa.bool_())


def _column(values: pd.Series, *, as_text: bool) -> pa.Array:
    numeric = pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values)
    if numeric and not as_text and not isinstance(values.dtype, pd.CategoricalDtype):
        return pa.array(values.to_numpy(), from_pandas=True)
    missing = values.isna().to_numpy()
    write = _whole if as_text else str
    if isinstance(values.dtype, pd.CategoricalDtype):
        # A category is written once, however many cells are of it; the code of what is missing is -1, the last.
        names = [*map(write, values.cat.categories.astype(object)), None]
        text = np.array(names, object)[values.cat.codes.to_numpy()]
    else:
        text = values.astype(object).map(write).to_numpy()
    return pa.array(text, mask=missing, type=pa.string()).dictionary_encode()


def _whole(value: object) -> str:
    """Return a value as text; integers that are floating-point numbers because others are missing stay integers."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
