"""Columns of cells' tables as they come into the atlas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from cellmill.ingestion.obs import obs_table

VALUES: list[list[Any]] = [
    ["b", "a", "b", None, "c"],
    [7, 8, 7],
    [7.0, 8.5, np.nan, 7.0],
    [True, False, True],
    [np.nan, np.nan],
    ["7", 7, None, "of more than one"],
    [pd.Timestamp("2024-02-29"), pd.NaT],
]


@pytest.mark.parametrize("values", VALUES, ids=str)
@pytest.mark.parametrize("target", ["donor_id", "batch"])
def test_categories_are_written_as_their_values_would_be(values: list[Any], target: str) -> None:
    stored = pd.Categorical(values)
    stored = stored.reorder_categories(stored.categories[::-1])
    found = obs_table(pd.DataFrame({"own": stored}), {target: "own"}, where="f.h5ad")[target]
    wanted = obs_table(pd.DataFrame({"own": stored.astype(object)}), {target: "own"}, where="f.h5ad")[target]
    assert found.equals(wanted)
    assert found.type == pa.dictionary(pa.int32(), pa.string())
    assert found.null_count == stored.isna().sum()
