"""Cells of a source that its configuration wants."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cellmill.atlas import read
from cellmill.errors import ConfigError
from cellmill.ingestion import ingest
from tests.ingestion.cells import config, make_adata, write


@pytest.fixture
def source(tmp_path: Path) -> Path:
    adata = make_adata(60)
    adata.obs["is_primary_data"] = np.arange(60) % 4 > 0
    adata.obs["disease"] = pd.Categorical(["normal", "asthma || normal", None] * 20)
    return write(adata, tmp_path / "a.h5ad")


@pytest.mark.parametrize(
    ("where", "n"),
    [("is_primary_data", 45), ("has(disease, 'normal') and age < 30", 20), ("disease is null", 20)],
)
def test_other_cells_are_left_out_and_counted(source: Path, tmp_path: Path, where: str, n: int) -> None:
    wanted = {"where": where, "obs": {"age": "age"}}
    (report,) = ingest(config(tmp_path / "atlas", source, source=wanted, task_memory_mb=64)).reports
    assert report.dropped == {"outside of `where`": 60 - n}
    assert report.cells_out == n
    kept = read(tmp_path / "atlas", where=where)
    assert kept.n_obs == n == read(tmp_path / "atlas").n_obs


def test_a_column_that_is_not_there_is_named(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no column 'is_primary'") as caught:
        ingest(config(tmp_path / "atlas", source, source={"where": "is_primary"}))
    assert "is_primary_data" in caught.value.fix
    assert str(source) in caught.value.where
