"""loom files, against loompy and anndata."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest

from cellmill.errors import SourceError
from cellmill.ingestion import ingest
from tests.ingestion.cells import config, counts, genes, make_adata
from tests.ingestion.sources.opened import format_of, opened, whole

REGIONS = ["Ammon's horn", "α & β", "<none>"]

loompy = pytest.importorskip("loompy", reason="loompy is not installed")


def write_loom(path: Path, n_cells: int = 30, n_genes: int = 20) -> Any:
    rng = np.random.default_rng(3)
    found = rng.poisson(1.0, (n_genes, n_cells)).astype(np.int32)
    loompy.create(
        str(path),
        {"": found * 0.5, "counts": found, "spliced": found // 2},
        {"Gene": np.array([f"G{i}" for i in range(n_genes)]), "Accession": np.array(genes(n_genes))},
        {
            "CellID": np.array([f"cell-{i}" for i in range(n_cells)]),
            "Clusters": np.arange(n_cells) % 3,
            "Region": np.array(REGIONS * (n_cells // 3)),
            "XY": rng.random((n_cells, 2)),
        },
    )
    return found


def test_matrix_layers_and_attributes_equal_what_loompy_reads(tmp_path: Path) -> None:
    found = write_loom(tmp_path / "a.loom")
    with loompy.connect(str(tmp_path / "a.loom"), "r", validate=False) as file:
        main, cells, rows = file[:, :].T, {name: file.ca[name] for name in file.ca}, {n: file.ra[n] for n in file.ra}
    assert format_of(tmp_path / "a.loom") == "loom"
    source = opened(tmp_path / "a.loom")
    assert source.places() == ["layers/counts", "X", "layers/spliced"]
    for step in (7, 30):
        assert np.array_equal(whole(source, "layers/counts", step), found.T)
    assert np.array_equal(whole(source), main)
    obs, var = source.obs(source.obs_columns()), source.var("X")
    assert obs.index.tolist() == cells["CellID"].tolist()
    # loompy itself loses letters that are not ASCII when it reads them.
    assert obs["Region"].tolist() == REGIONS * 10
    assert obs["Clusters"].tolist() == cells["Clusters"].tolist()
    assert np.array_equal(obs[["XY_1", "XY_2"]].to_numpy(), cells["XY"])
    assert {name: var[name].tolist() for name in var} == {name: values.tolist() for name, values in rows.items()}
    assert sorted(obs.columns) == ["Clusters", "Region", "XY_1", "XY_2"]
    assert source.default_names("X") == ("Accession", "Gene")
    source.close()


def test_a_real_file_with_an_attribute_of_one_column(shared_data: Path) -> None:
    path = shared_data / "formats/messy/mpfc-starmap.loom"
    # anndata cannot read it: an attribute has the shape (n, 1).
    with loompy.connect(str(path), "r", validate=False) as file:
        wanted, clusters = file[:, :].T, file.ca["Clusters"].tolist()
        batches = np.ravel(file.ca["BatchID"]).tolist()
    source = opened(path)
    assert np.array_equal(whole(source, step=500), wanted)
    obs = source.obs(["BatchID", "Clusters"])
    assert obs["BatchID"].tolist() == batches
    assert obs["Clusters"].tolist() == clusters
    assert obs.index[:3].tolist() == ["0", "1", "2"]
    assert source.default_names("X") == ("Gene", None)
    source.close()


def test_what_is_ingested_equals_the_layer_of_counts(tmp_path: Path) -> None:
    found = write_loom(tmp_path / "a.loom")
    settings = config(tmp_path / "atlas", tmp_path / "a.loom", source={"obs": {"Region": "region"}}, shard_cells=11)
    (report,) = ingest(settings).reports
    assert report.counts == "layers/counts"
    wanted = pd.DataFrame(found.T.astype(float), index=[f"cell-{i}" for i in range(30)], columns=genes(20))
    pd.testing.assert_frame_equal(counts(tmp_path / "atlas"), wanted.sort_index().sort_index(axis=1))
    assert not ingest(settings).changed


@pytest.mark.parametrize("symbols", [False, True])
def test_files_that_anndata_wrote_keep_the_names_of_var(tmp_path: Path, symbols: bool) -> None:
    adata = make_adata()
    if symbols:
        adata.var["gene_ids"], adata.var_names = adata.var_names, [f"G{i}" for i in range(adata.n_vars)]
    adata.write_loom(tmp_path / "a.loom")
    source = opened(tmp_path / "a.loom")
    assert source.var("X").index.tolist() == adata.var_names.tolist()
    assert source.default_names("X") == (("gene_ids", "index") if symbols else ("index", None))
    source.close()
    ingest(config(tmp_path / "atlas", tmp_path / "a.loom"))
    wanted = pd.DataFrame(adata.X.toarray().astype(float), index=adata.obs_names, columns=genes(adata.n_vars))
    found = counts(tmp_path / "atlas")
    pd.testing.assert_frame_equal(found, wanted.loc[found.index, found.columns], check_names=False)


def swap(key: str, values: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[key]
        if values is not None:
            file[key] = values

    return change


def claim(file: h5py.File) -> None:
    del file["matrix"]
    file.create_dataset("matrix", (10**6, 10**5), np.float32, chunks=(64, 64), compression="gzip")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (swap("matrix", np.zeros(5)), "no matrix of numbers"),
        (swap("matrix", np.array([[b"x"] * 30] * 20)), "no matrix of numbers"),
        (swap("row_attrs/Gene", np.array([b"x"] * 19)), "19 values, the matrix 20"),
        (swap("col_attrs/Clusters", np.zeros(31)), "31 values, the matrix 30"),
        (claim, "claims 400.0 GB"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, change: Callable[[h5py.File], None], what: str) -> None:
    write_loom(tmp_path / "a.loom")
    with h5py.File(tmp_path / "a.loom", "r+") as file:
        change(file)
    with pytest.raises(SourceError, match=what) as caught:
        opened(tmp_path / "a.loom")
    assert "a.loom" in caught.value.where


def test_a_layer_of_another_shape_and_a_file_cut_short_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.loom"
    write_loom(path)
    with h5py.File(path, "r+") as file:
        swap("layers/counts", np.zeros((20, 31)))(file)
    with pytest.raises(SourceError, match="shape"):
        opened(path).rows("layers/counts", 0, 2)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SourceError, match="cut short"):
        opened(path)
