"""Several matrices of the same cells: aligned by barcode, read by rows, every missing cell counted."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse
from typer.testing import CliRunner

from cellmill import console
from cellmill.atlas import read
from cellmill.cli import app
from cellmill.errors import CellmillError, ConfigError, CountsError, SourceError
from cellmill.ingestion import IngestConfig, JoinConfig, SourceConfig, ingest
from cellmill.ingestion.pipeline import plan
from cellmill.ingestion.sources import Place, Source
from cellmill.ingestion.sources.joined import JoinedSource, open_joined
from tests.ingestion.cells import genes, make_adata, write

PROTEINS = ["CD3_TotalSeqB", "CD4_TotalSeqB", "IgG1_control_TotalSeqB"]


def peaks(barcodes: list[str], seed: int = 1, n: int = 30) -> Any:
    rng = np.random.default_rng(seed)
    counts = sparse.csr_matrix(rng.poisson(0.3, (len(barcodes), n)).astype(np.float32))
    names = [f"chr1:{i * 1000}-{i * 1000 + 500}" for i in range(n)]
    return ad.AnnData(counts, pd.DataFrame(index=barcodes), pd.DataFrame(index=names))


def config(atlas: Path, path: Path, *joins: JoinConfig, **settings: Any) -> IngestConfig:
    source = SourceConfig(path=str(path), dataset="both", organism="human", join=joins)
    return IngestConfig(atlas=str(atlas), sources=(source,), backend="local", **settings)


def frame(atlas: Path) -> pd.DataFrame:
    adata = read(str(atlas))
    return pd.DataFrame(adata.X.toarray(), index=adata.obs["barcode"].tolist(), columns=list(adata.var_names))


@pytest.mark.parametrize("form", ["h5ad", "zarr"])
def test_proteins_of_the_same_file(tmp_path: Path, form: str) -> None:
    adata = make_adata(40, 20)
    table = np.random.default_rng(2).integers(0, 500, (40, 3))
    adata.obsm["protein_counts"] = pd.DataFrame(table.astype(float), index=adata.obs_names, columns=PROTEINS)
    path = tmp_path / f"a.{form}"
    getattr(adata, f"write_{form}")(path)
    result = ingest(config(tmp_path / "atlas", path, JoinConfig(counts="obsm/protein_counts"), task_memory_mb=64))
    (report,) = result.reports
    assert report.counts == "X + obsm/protein_counts"
    assert [part.modality for part in report.parts] == ["rna", "protein"]
    assert report.others[0].genes == {"alias": 2, "isotype_control": 1}
    assert sum(report.others[0].umis.values()) == table.sum()
    found = frame(tmp_path / "atlas").loc[adata.obs_names]
    assert np.array_equal(found[adata.var_names].to_numpy(), adata.X.toarray())
    assert np.array_equal(found[["protein:human:CD3", "protein:human:CD4"]].to_numpy(), table[:, :2])
    assert report.unpaired == {}
    again = ingest(config(tmp_path / "atlas", path, JoinConfig(counts="obsm/protein_counts")))
    assert not again.changed


@pytest.mark.parametrize("kind", ["array", "sparse"])
def test_an_array_of_obsm_takes_its_names_from_a_list_in_uns(tmp_path: Path, kind: str) -> None:
    adata = make_adata(12, 10)
    table = np.arange(36).reshape(12, 3)
    adata.obsm["protein"] = table if kind == "array" else sparse.csr_matrix(table)
    adata.uns["names"] = np.array(PROTEINS)
    path = write(adata, tmp_path / "a.h5ad")
    join = JoinConfig(counts="obsm/protein", genes="uns/names", modality="protein")
    ingest(config(tmp_path / "atlas", path, join))
    found = frame(tmp_path / "atlas").loc[adata.obs_names]
    assert np.array_equal(found["protein:human:CD4"].to_numpy(), table[:, 1])
    without = JoinConfig(counts="obsm/protein", modality="protein")
    with pytest.raises(CellmillError, match="None of the 3 proteins") as caught:
        ingest(config(tmp_path / "other", path, without))
    assert "where the names" in caught.value.fix


def test_peaks_of_another_file_in_another_order(tmp_path: Path) -> None:
    rna = make_adata(60, 20)
    order = np.random.default_rng(3).permutation(60)
    kept = [name for i, name in enumerate(rna.obs_names[order]) if i % 10]
    atac = peaks([*kept, "stranger-1", "stranger-2"])
    first, second = write(rna, tmp_path / "rna.h5ad"), write(atac, tmp_path / "atac.h5ad")
    join = JoinConfig(path=str(second), assembly="GRCh38")
    (report,) = ingest(config(tmp_path / "atlas", first, join, peaks={"binarise": True})).reports
    assert report.unpaired == {"only in atac.h5ad": 2}
    assert (report.cells_in, report.cells_out, report.dropped) == (60, 54, {"not in atac.h5ad": 6})
    assert report.url == f"{Place(first).url} + {Place(second).url}"
    found = frame(tmp_path / "atlas").loc[kept]
    assert np.array_equal(found[rna.var_names].to_numpy(), rna[kept].X.toarray())
    names = [f"hg38:{name}" for name in atac.var_names]
    expected = (atac[kept].X.toarray() > 0).astype(float)
    here = [name for name in names if name in found]
    assert np.array_equal(found[here].to_numpy(), expected[:, [names.index(name) for name in here]])
    assert sum(report.others[0].umis.values()) == atac[kept].X.sum()


def test_cells_that_one_matrix_lacks_may_be_kept(tmp_path: Path) -> None:
    rna = make_adata(20, 10)
    atac = peaks([*rna.obs_names[5:15]])
    first, second = write(rna, tmp_path / "rna.h5ad"), write(atac, tmp_path / "atac.h5ad")
    join = JoinConfig(path=str(second), assembly="hg38", missing="keep")
    (report,) = ingest(config(tmp_path / "atlas", first, join)).reports
    assert (report.cells_out, report.unpaired) == (20, {"kept though not in atac.h5ad": 10})
    found = frame(tmp_path / "atlas").loc[rna.obs_names]
    assert np.array_equal(found[rna.var_names].to_numpy(), rna.X.toarray())
    peak = [name for name in found if name.startswith("hg38:")]
    assert found[peak].to_numpy()[5:15].sum() == atac.X.sum()
    assert found[peak].to_numpy().sum() == atac.X.sum()


def test_cells_that_are_left_out_are_counted_once_wherever_cells_are_told(tmp_path: Path) -> None:
    rna = make_adata(30, 10)
    rna.X = sparse.csr_matrix(rna.X.toarray() * (np.arange(30) >= 2)[:, None])
    paths = [write(rna, tmp_path / "rna.h5ad")]
    for name, lacking in (("first", 5), ("second", 8)):
        paths.append(write(peaks(list(rna.obs_names[:-lacking])), tmp_path / f"{name}.h5ad"))
    joins = [{"path": str(path), "assembly": "hg38", "missing": "drop"} for path in paths[1:]]
    source = {"path": str(paths[0]), "dataset": "both", "organism": "human", "join": joins}
    (tmp_path / "c.json").write_text(json.dumps({"atlas": str(tmp_path / "atlas"), "sources": [source]}))
    run = ["ingest", str(tmp_path / "c.json"), "--set", "backend=local"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(console.console, "_width", 150)
        planned = CliRunner().invoke(app, [*run, "--dry-run"]).output
        told = CliRunner().invoke(app, run).output
        shown = CliRunner().invoke(app, ["atlas", "show", str(tmp_path / "atlas"), "--dataset", "both"]).output
    left_out = {"not in first.h5ad": 5, "not in second.h5ad": 3}
    assert re.search(r"both .*│ 30 ", planned)
    for reason, n in left_out.items():
        assert f"both: {n} cells will be left out, {reason}" in planned
        assert f"({n} {reason})" in told
        assert f"{n} left out: {reason}" in shown
    assert re.search(r"both +│ 30 +│ 20 ", told)
    assert "30 cells in, 20 kept" in shown
    (report,) = (json.loads(path.read_text()) for path in (tmp_path / "atlas").glob("reports/datasets/both/*.json"))
    assert report["dropped"] == {**left_out, "fewer genes than min_genes": 2}
    assert report["cells_in"] == report["cells_out"] + sum(report["dropped"].values())


def test_matrices_without_a_cell_that_all_have_are_refused(tmp_path: Path) -> None:
    rna = make_adata(20, 10)
    joins = [
        JoinConfig(path=str(write(peaks(list(names)), tmp_path / f"{i}.h5ad")), assembly="hg38")
        for i, names in enumerate((rna.obs_names[:10], rna.obs_names[10:]))
    ]
    with pytest.raises(SourceError, match="No cell is in all of the 3 matrices"):
        plan(config(tmp_path / "atlas", write(rna, tmp_path / "rna.h5ad"), *joins))


class Counted:
    """A source that remembers how many rows were read at once."""

    def __init__(self, inner: Source) -> None:
        self.inner, self.most = inner, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def rows(self, place: str, start: int, stop: int) -> Any:
        self.most = max(self.most, stop - start)
        return self.inner.rows(place, start, stop)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), n=st.integers(2, 300), chunk=st.integers(1, 80))
def test_any_order_is_read_by_chunks_of_bounded_size(tmp_path: Path, data: st.DataObject, n: int, chunk: int) -> None:
    seed = data.draw(st.integers(0, 1000))
    rng = np.random.default_rng(seed)
    rna = make_adata(n, 8, seed)
    chosen = rng.permutation(n)[: max(1, int(n * rng.random()))] if seed % 3 else np.arange(n)
    atac = peaks([str(rna.obs_names[i]) for i in chosen], seed, 5)
    first, second = write(rna, tmp_path / "rna.h5ad"), write(atac, tmp_path / "atac.h5ad")
    missing = "keep" if seed % 2 else "drop"
    config = SourceConfig(
        path=str(first), join=(JoinConfig(path=str(second), assembly="hg38", missing=missing),), organism="human"
    )
    source = open_joined("h5ad", Place(first), "both", config)
    assert isinstance(source, JoinedSource)
    counted = Counted(source.others[0].source)
    object.__setattr__(source.others[0], "source", counted)
    place = source.find_counts(1024)
    names = source.obs([]).index
    wanted = list(rna.obs_names) if missing == "keep" else [name for name in rna.obs_names if name in atac.obs_names]
    assert names.tolist() == wanted
    table = pd.DataFrame(atac.X.toarray(), index=atac.obs_names).reindex(wanted).fillna(0).to_numpy()
    expected = np.hstack([rna[wanted].X.toarray(), table])
    counted.most = 0
    for start in range(0, len(wanted), chunk):
        stop = min(start + chunk, len(wanted))
        block = source.rows(place, start, stop)
        assert np.array_equal(block.toarray(), expected[start:stop])
        assert source.obs(["age"], start, stop)["age"].tolist() == rna[wanted].obs["age"].tolist()[start:stop]
    assert counted.most <= max(chunk, 64)
    assert source.starts(place)[-1] == rna[wanted].X.nnz + sum(
        atac[name].X.nnz for name in wanted if name in atac.obs_names
    )
    source.close()


def test_a_changed_second_file_is_another_input(tmp_path: Path) -> None:
    rna = make_adata(20, 10)
    first = write(rna, tmp_path / "rna.h5ad")
    second = write(peaks(list(rna.obs_names), 1), tmp_path / "atac.h5ad")
    join = JoinConfig(path=str(second), assembly="hg38")
    ingest(config(tmp_path / "atlas", first, join))
    moved = second.rename(tmp_path / "moved.h5ad")
    renamed = JoinConfig(path=str(moved), assembly="hg38")
    assert not ingest(config(tmp_path / "atlas", first, renamed)).changed  # where a file is does not matter
    write(peaks(list(rna.obs_names), 2), second)
    result = ingest(config(tmp_path / "atlas", first, join))
    assert result.changed
    assert len(read(str(tmp_path / "atlas"))) == 20  # the former is replaced


def test_matrices_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    rna = make_adata(10, 10)
    first = write(rna, tmp_path / "rna.h5ad")
    strangers = write(peaks([f"x{i}" for i in range(10)]), tmp_path / "strangers.h5ad")
    twice = peaks(list(rna.obs_names))
    twice.obs_names = ["a", "a", *rna.obs_names[2:]]
    doubled = write(twice, tmp_path / "doubled.h5ad")
    floats = peaks(list(rna.obs_names))
    floats.X = floats.X * 0.37
    scaled = write(floats, tmp_path / "scaled.h5ad")
    fine = write(peaks(list(rna.obs_names)), tmp_path / "fine.h5ad")
    for join, error, message in (
        (JoinConfig(path=str(strangers), assembly="hg38"), SourceError, "'cell0-0' here and 'x0' there"),
        (JoinConfig(path=str(doubled), assembly="hg38"), SourceError, "'a' stands twice"),
        (JoinConfig(path=str(scaled), assembly="hg38"), CountsError, "not raw counts"),
        (JoinConfig(path=str(fine)), ConfigError, "assembly"),
        (JoinConfig(path=str(tmp_path / "none.h5ad")), SourceError, "does not exist"),
        (JoinConfig(), ConfigError, "needs a place"),
        (JoinConfig(counts="obsm/none"), SourceError, "no matrix at 'obsm/none'"),
    ):
        with pytest.raises(error, match=message) as caught:
            plan(config(tmp_path / "atlas", first, join))
        assert caught.value.fix
    assert genes(1)  # the atlas was not made
    assert not (tmp_path / "atlas").exists()
