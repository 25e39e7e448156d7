"""What cannot be ingested is refused by what, where and fix, and the atlas stays as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import sparse
from typer.testing import CliRunner

from cellmill.atlas import Atlas
from cellmill.cli import load
from cellmill.errors import CellmillError, ConfigError, CountsError, GeneMappingError, SourceError
from cellmill.ingestion import ingest
from tests.ingestion.cells import config, make_adata, write


def missing(path: Path) -> None:
    pass


def not_hdf5(path: Path) -> None:
    path.write_bytes(b"gene,cell1,cell2\nINS,1,2\n")


def no_anndata(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["X"] = np.ones((3, 3))


def truncated(path: Path) -> None:
    write(make_adata(), path)
    path.write_bytes(path.read_bytes()[:-2000])


def changed(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        adata = make_adata()
        adata.X = sparse.csr_matrix(change(adata.X.toarray().astype(np.float64)))
        write(adata, path)

    return make


def unknown_genes(path: Path) -> None:
    adata = make_adata()
    adata.var_names = [*adata.var_names[:10], *(f"contig_{i}" for i in range(30))]
    write(adata, path)


def no_genes(path: Path) -> None:
    adata = make_adata()
    adata.var_names = [str(i) for i in range(adata.n_vars)]
    write(adata, path)


def no_columns(path: Path) -> None:
    write(make_adata()[:, :0].copy(), path)


def empty_matrix(path: Path) -> None:
    adata = make_adata()
    adata.X = sparse.csr_matrix(adata.shape, dtype=np.float32)
    write(adata, path)


def spliced_only(path: Path) -> None:
    adata = make_adata()
    adata.layers["spliced"] = adata.X.copy()
    adata.X = sparse.csr_matrix(np.log1p(adata.X.toarray()))
    write(adata, path)


def edited(edit: Callable[[h5py.File], None]) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        write(make_adata(), path)
        with h5py.File(path, "r+") as file:
            edit(file)

    return make


def bad_column(file: h5py.File) -> None:
    file["X/indices"][3] = 4000


def bad_rows(file: h5py.File) -> None:
    file["X/indptr"][2] = 10**9


def bomb(file: h5py.File) -> None:
    del file["X"]
    file.create_dataset("X", shape=(50, 40_000_000), dtype="f4", chunks=(50, 1000), compression="gzip")


def wrong_shape(file: h5py.File) -> None:
    del file["X"]
    file["X"] = np.ones((7, 40))


def opaque(file: h5py.File) -> None:
    del file["X"]
    file.create_dataset("X", data=np.full((50, 40), np.void(b"\x80\x04].")))


CASES: list[tuple[Callable[[Path], None], type[CellmillError], str, str]] = [
    (missing, SourceError, "does not exist", ""),
    (not_hdf5, SourceError, "it is text", "h5ad"),
    (no_anndata, SourceError, "holds X", "h5ad"),
    (truncated, SourceError, "cut short", ""),
    (changed(np.log1p), CountsError, "log", "counts"),
    (changed(lambda x: x / x.sum(axis=1, keepdims=True) * 1e4), CountsError, "normalised", "counts"),
    (changed(lambda x: (x - x.mean(0)) / (x.std(0) + 1)), CountsError, "scaled", "counts"),
    (changed(lambda x: np.where(x == x.max(), np.nan, x)), CountsError, "NaN", ""),
    (spliced_only, CountsError, "log", "layers/spliced"),
    (unknown_genes, GeneMappingError, "have no place", "max_umis_lost"),
    (no_genes, GeneMappingError, "None of the 40", "numbers"),
    (no_columns, SourceError, "no features", "genes"),
    (empty_matrix, SourceError, "No cell passes", "min_genes"),
    (edited(bad_column), SourceError, "columns that are not there", "damaged"),
    (edited(bad_rows), SourceError, "inconsistent", "damaged"),
    (edited(bomb), SourceError, "claims", "damaged"),
    (edited(wrong_shape), SourceError, "7 rows", ""),
    (edited(opaque), SourceError, "not numbers", "damaged"),
]


def state(atlas: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in atlas.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("existing")
    ingest(config(path / "atlas", write(make_adata(seed=9), path / "good.h5ad")))
    return path / "atlas"


@pytest.mark.parametrize(("make", "kind", "what", "fix"), CASES)
def test_a_bad_file_is_refused_and_the_atlas_unchanged(
    tmp_path: Path, atlas: Path, make: Callable[[Path], None], kind: type[CellmillError], what: str, fix: str
) -> None:
    bad, good = tmp_path / "bad.h5ad", write(make_adata(seed=10), tmp_path / "fine.h5ad")
    make(bad)
    before = state(atlas)
    with pytest.raises(kind, match=what) as caught:
        ingest(config(atlas, good, bad))
    assert str(bad) in caught.value.where
    assert fix in caught.value.fix
    assert state(atlas) == before


def test_a_value_that_is_no_count_deep_in_the_file_is_found(tmp_path: Path, atlas: Path) -> None:
    adata = make_adata(2000, seed=3)
    adata.X.data[adata.X.nnz // 2] = 0.25
    before = state(atlas)
    with pytest.raises(CountsError, match="not integers"):
        ingest(config(atlas, write(adata, tmp_path / "a.h5ad")))
    assert state(atlas) == before


def test_noise_around_integers_is_rounded_away(tmp_path: Path) -> None:
    adata = make_adata()
    wanted = adata.X.toarray()
    adata.X = sparse.csr_matrix(adata.X.astype(np.float64) * (1 + 1e-12))
    ingest(config(tmp_path / "atlas", write(adata, tmp_path / "a.h5ad")))
    cells = Atlas.open(tmp_path / "atlas").snapshot().cells(["barcode", "n_counts"]).to_pandas()
    assert cells.set_index("barcode")["n_counts"].loc[adata.obs_names].tolist() == wanted.sum(axis=1).tolist()


@pytest.mark.parametrize(
    ("source", "what", "fix"),
    [
        ({"obs": {"doner": "donor"}}, "'doner'", "'donor'"),
        ({"obs": {"donor": "x", "age": "x"}}, "one name", ""),
        ({"genes": "ensembl"}, "no column 'ensembl'", "index"),
        ({"counts": "layers/counts"}, "no matrix at", "X"),
    ],
)
def test_a_wrong_description_is_refused(
    tmp_path: Path, atlas: Path, source: dict[str, Any], what: str, fix: str
) -> None:
    before = state(atlas)
    with pytest.raises((ConfigError, SourceError), match=what) as caught:
        ingest(config(atlas, write(make_adata(seed=4), tmp_path / "a.h5ad"), source=source))
    assert fix in caught.value.fix
    assert state(atlas) == before


def test_mouse_genes_called_human_are_refused(tmp_path: Path) -> None:
    from cellmill.genes import load_table

    adata = make_adata()
    adata.var_names = load_table("mouse").symbols[500:540]
    with pytest.raises(GeneMappingError) as caught:
        ingest(config(tmp_path / "atlas", write(adata, tmp_path / "a.h5ad")))
    assert "mouse" in caught.value.fix


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("atlas: A\nsauces: []\n", "sauces"),
        ("atlas: A\nsources:\n- path: x\n  licens: MIT\n", "licens"),
        ("atlas: A\nsources: []\n", "sources"),
        ("atlas: A\nsources:\n- path: x\n  dataset: a/b\n", "dataset"),
        ("- 1\n", "mapping"),
    ],
)
def test_a_wrong_configuration_is_refused(tmp_path: Path, text: str, what: str) -> None:
    path = tmp_path / "atlas.yaml"
    path.write_text(text)
    result = CliRunner().invoke(load_app(), [str(path)])
    assert isinstance(result.exception, ConfigError)
    assert what in str(result.exception)


def load_app() -> Any:
    import typer

    from cellmill.ingestion.cli import ingest as command

    app = typer.Typer()
    app.command()(command)
    assert load("ingest").name == "ingest"
    return app


def test_the_command_plans_ingests_and_says_when_nothing_changes(tmp_path: Path) -> None:
    import json

    path = write(make_adata(), tmp_path / "a.h5ad")
    settings = {"atlas": str(tmp_path / "atlas"), "backend": "local", "sources": [{"path": str(path)}]}
    (tmp_path / "atlas.yaml").write_text(yaml.safe_dump(settings))
    run = [str(tmp_path / "atlas.yaml"), "--json"]
    planned = json.loads(CliRunner().invoke(load_app(), [*run, "--dry-run"]).stdout)
    assert not (tmp_path / "atlas").exists()
    assert pd.DataFrame(planned["plan"] if isinstance(planned, dict) else planned)["cells"].tolist() == [50]
    assert json.loads(CliRunner().invoke(load_app(), run).stdout)["changed"]
    again = json.loads(CliRunner().invoke(load_app(), [*run, "--set", "task_memory_mb=64"]).stdout)
    assert not again["changed"]


@pytest.mark.parametrize("column", [-5, 40])
def test_an_anndata_in_memory_that_names_columns_it_does_not_have_is_refused(tmp_path: Path, column: int) -> None:
    adata = make_adata(50, 40)
    counts = sparse.csr_matrix(adata.X)
    counts.indices = counts.indices.copy()
    counts.indices[3] = column
    adata.X = counts
    with pytest.raises(SourceError, match="The sparse matrix is inconsistent"):
        ingest(adata, atlas=tmp_path / "atlas")
