"""Counts that nobody asked for are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from typer.testing import CliRunner

from cellmill import console
from cellmill.cli import app
from cellmill.ingestion import ingest
from cellmill.ingestion.result import REPORT
from tests.ingestion.cells import make_adata, write

COUNTS = ["obsm/guides", "obsm/proteins", "obsm/tags"]
"""Those that are counts, of what `crowded` has."""


def crowded() -> Any:
    adata = make_adata(300, 10)
    rng = np.random.default_rng(0)
    few = rng.poisson(2.0, (300, 3))
    adata.obsm["guides"] = few
    adata.obsm["proteins"] = pd.DataFrame(few.astype(float), adata.obs_names, ["CD3", "CD4", "CD8"])
    adata.obsm["tags"] = sparse.csr_matrix(few.astype(np.float32))
    adata.obsm["X_pca"] = rng.normal(size=(300, 4))
    adata.obsm["scores"] = rng.normal(size=(300, 2))
    adata.obsm["signed"] = few - 3
    adata.obsm["spatial"] = rng.integers(0, 9000, (300, 2))
    adata.obsm["named"] = pd.DataFrame({"text": ["a"] * 300}, adata.obs_names)
    adata.obsm["nothing"] = sparse.csr_matrix((300, 3))
    return adata


@pytest.mark.parametrize("form", ["h5ad", "zarr"])
def test_counts_in_obsm_are_told_unless_they_are_joined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    path = tmp_path / f"a.{form}"
    getattr(crowded(), f"write_{form}")(path)
    join = [{"counts": "obsm/proteins", "modality": "protein"}]
    source = {"path": str(path), "organism": "human", "join": join}
    (tmp_path / "c.json").write_text(json.dumps({"atlas": str(tmp_path / "atlas"), "sources": [source]}))
    run = ["ingest", str(tmp_path / "c.json"), "--set", "backend=local"]
    monkeypatch.setattr(console.console, "_width", 200)
    planned = CliRunner().invoke(app, [*run, "--dry-run"]).output
    assert [line.split()[3] for line in planned.splitlines() if "not read" in line] == ["obsm/guides", "obsm/tags"]
    assert "not read: obsm/guides, obsm/tags" in CliRunner().invoke(app, run).output
    shown = CliRunner().invoke(app, ["atlas", "show", str(tmp_path / "atlas"), "--dataset", "a"]).output
    assert [line.strip() for line in shown.splitlines() if "not read" in line] == [
        "not read: obsm/guides",
        "not read: obsm/tags",
    ]
    (page,) = (tmp_path / "atlas").rglob(REPORT)
    assert "There are counts in obsm/guides, too" in page.read_text()


def test_an_object_in_memory_and_a_further_file_have_tables_too(tmp_path: Path) -> None:
    (report,) = ingest(crowded(), atlas=tmp_path / "atlas").reports
    assert report.unread == tuple(COUNTS)
    peaks = ad.AnnData(make_adata(300, 2).X, obs=crowded().obs, obsm=crowded().obsm)
    peaks.var_names = ["chr1:100-200", "chr1:300-400"]
    join = [{"path": str(write(peaks, tmp_path / "b.h5ad")), "assembly": "hg38"}]
    source = {"path": str(write(make_adata(300, 10), tmp_path / "a.h5ad")), "organism": "human", "join": join}
    (tmp_path / "c.json").write_text(json.dumps({"atlas": str(tmp_path / "other"), "sources": [source]}))
    run = ["ingest", str(tmp_path / "c.json"), "--set", "backend=local", "--dry-run", "--json"]
    (line,) = json.loads(CliRunner().invoke(app, run).stdout)["plan"]
    assert line["unread"] == [f"b.h5ad: {place}" for place in COUNTS]


def test_what_nobody_wants_may_be_damaged(tmp_path: Path) -> None:
    path = write(crowded(), tmp_path / "a.h5ad")
    with h5py.File(path, "r+") as file:
        del file["obsm/tags/indptr"]
        del file["obsm/guides"]
        file["obsm/guides"] = np.zeros((2, 3, 4), np.int32)
        file["obsm"].create_group("awkward").attrs["encoding-type"] = "awkward-array"
    source = {"path": str(path), "organism": "human"}
    (tmp_path / "c.json").write_text(json.dumps({"atlas": str(tmp_path / "atlas"), "sources": [source]}))
    run = ["ingest", str(tmp_path / "c.json"), "--set", "backend=local", "--json"]
    result = CliRunner().invoke(app, run, catch_exceptions=False)
    (report,) = json.loads(result.stdout)["reports"]
    assert report["unread"] == ["obsm/proteins"]
