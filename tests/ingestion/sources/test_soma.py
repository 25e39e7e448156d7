"""TileDB-SOMA experiments that the test writes, against the AnnData they were written from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from cellmill.atlas import Atlas, read
from cellmill.errors import ConfigError, SourceError
from cellmill.ingestion import IngestConfig, ingest
from cellmill.ingestion.sources import Place
from cellmill.ingestion.sources.soma_address import CENSUS_BUCKET, address, tiledb_config
from tests.ingestion.cells import config, counts, make_adata, write
from tests.ingestion.sources.opened import format_of, opened, whole
from tests.ingestion.sources.s3 import bucket as bucket

soma = pytest.importorskip("tiledbsoma", reason="tiledbsoma is not installed (the extra census)")
soma_io: Any = pytest.importorskip("tiledbsoma.io")

pytestmark = pytest.mark.filterwarnings("ignore")


def write_soma(adata: Any, uri: str, measurement: str = "RNA") -> str:
    context = soma.SOMATileDBContext(tiledb_config=tiledb_config(uri))
    soma_io.from_anndata(uri, adata, measurement_name=measurement, context=context)
    return uri


def rich() -> Any:
    adata = make_adata(60, 30)
    adata.raw = adata.copy()
    adata.layers["counts"] = adata.X.copy()
    adata.X = adata.X * 0.5
    adata.obs["maybe"] = pd.array([1, None, 3] * 20, dtype="Int64")
    adata.obs["gap"] = pd.Categorical(["a", None, "b"] * 20)
    adata.obs["flag"] = [True, False, True] * 20
    return adata


def hashes(atlas: Path) -> set[tuple[str, bytes]]:
    """Return barcode and content hash of every cell of an atlas."""
    cells = Atlas.open(atlas).snapshot().select().cells(["barcode", "content_hash"])
    return set(zip(cells["barcode"].to_pylist(), cells["content_hash"].to_pylist(), strict=True))


def ingested(atlas: Path, source: str | Path, **settings: Any) -> Any:
    own = config(atlas, Path("x"), source=settings, shard_cells=25)
    sources = (own.sources[0].model_copy(update={"path": str(source), "dataset": "data"}),)
    return ingest(IngestConfig.model_validate({**own.model_dump(), "sources": sources}))


def test_places_tables_and_rows_equal_those_of_the_anndata(tmp_path: Path) -> None:
    adata = rich()
    uri = write_soma(adata, str(tmp_path / "exp"))
    assert format_of(uri) == "soma"
    source = opened(uri)
    assert source.places() == ["layers/counts", "raw.X", "X"]
    for place, wanted in (("layers/counts", adata.layers["counts"]), ("raw.X", adata.raw.X), ("X", adata.X)):
        for step in (60, 7):
            assert np.array_equal(whole(source, place, step), wanted.toarray())
        assert source.var(place).index.tolist() == adata.var_names.tolist()
        assert source.starts(place)[-1] >= wanted.nnz
    assert source.obs_columns() == list(adata.obs.columns)
    pd.testing.assert_frame_equal(
        source.obs(source.obs_columns(), 5, 40),
        adata.obs.iloc[5:40],
        check_dtype=False,
        check_categorical=False,
        check_index_type=False,
    )
    back = soma_io.to_anndata(soma.open(uri), "RNA", X_layer_name="counts")
    assert np.array_equal(whole(source, "layers/counts"), back.X.toarray())
    source.close()


def test_a_local_and_a_remote_experiment_give_the_cells_of_the_h5ad(tmp_path: Path, bucket: str) -> None:
    adata = rich()
    h5ad = write(adata, tmp_path / "a.h5ad")
    places: dict[str, str | Path] = {
        "h5ad": h5ad,
        "local": write_soma(adata, str(tmp_path / "exp")),
        "s3": write_soma(adata, f"{bucket}/exp"),
    }
    reports, cells = {}, {}
    for name, place in places.items():
        result = ingested(tmp_path / name, place, obs="all")
        assert result.changed
        (reports[name],) = result.reports
        cells[name] = hashes(tmp_path / name)
        assert not ingested(tmp_path / name, place, obs="all").changed
    assert cells["h5ad"] == cells["local"] == cells["s3"]
    assert len(cells["h5ad"]) == 60
    assert reports["local"].counts == reports["s3"].counts == reports["h5ad"].counts == "layers/counts"
    assert reports["local"].genes == reports["h5ad"].genes
    pd.testing.assert_frame_equal(counts(tmp_path / "s3"), counts(tmp_path / "h5ad"))


def test_one_identity_as_long_as_nothing_changes_wherever_it_is(tmp_path: Path) -> None:
    import shutil

    adata = make_adata(20)
    uri = write_soma(adata, str(tmp_path / "exp"))
    first = opened(uri).digest
    shutil.copytree(uri, tmp_path / "copy")
    assert opened(uri).digest == opened(tmp_path / "copy").digest == first
    with soma.open(uri, "w") as experiment:
        ones = pd.DataFrame({"soma_dim_0": [0], "soma_dim_1": [0], "soma_data": np.array([7], np.float32)})
        import pyarrow as pa

        experiment.ms["RNA"].X["data"].write(pa.Table.from_pandas(ones, preserve_index=False))
    assert opened(uri).digest != first
    assert opened(uri).rows("X", 0, 1).toarray()[0, 0] == 7


def test_cells_that_were_taken_out_of_obs_are_not_read(tmp_path: Path) -> None:
    adata = make_adata(20)
    uri = write_soma(adata, str(tmp_path / "exp"))
    with soma.open(f"{uri}/obs", "d") as obs:
        obs.delete_cells(coords=(slice(3, 6),))
    source = opened(uri)
    kept = [i for i in range(20) if not 3 <= i <= 6]
    assert source.n_cells == 16
    assert np.array_equal(whole(source, step=5), adata.X.toarray()[kept])
    assert source.obs(["age"])["age"].tolist() == kept


def test_a_dense_matrix(tmp_path: Path) -> None:
    adata = make_adata(20)
    uri = str(tmp_path / "exp")
    soma_io.from_anndata(uri, ad.AnnData(adata.X.toarray(), adata.obs, adata.var), "RNA", X_kind=soma.DenseNDArray)
    source = opened(uri)
    assert np.array_equal(whole(source, step=6), adata.X.toarray())


def test_measurements_are_asked_for(tmp_path: Path) -> None:
    adata = make_adata(20)
    uri = write_soma(adata, str(tmp_path / "exp"), "spliced")
    assert opened(uri).places() == ["X"]
    with soma.open(f"{uri}/ms", "w") as ms:
        ms.add_new_collection("unspliced", soma.Measurement)
    with pytest.raises(SourceError, match="2 measurements: spliced, unspliced"):
        opened(uri)
    assert np.array_equal(whole(opened(uri, group="spliced")), adata.X.toarray())
    with pytest.raises(SourceError, match="no measurement 'RNA'"):
        opened(uri, group="RNA")


def test_proteins_of_a_measurement_are_joined_to_genes(tmp_path: Path) -> None:
    rna, protein = make_adata(20), make_adata(20, 3, seed=7)
    protein.obs_names, protein.var_names = rna.obs_names, ["CD3_TotalSeqB", "CD4_TotalSeqB", "CD8a_TotalSeqB"]
    paths = write_soma(rna, str(tmp_path / "rna")), write_soma(protein, str(tmp_path / "protein"), "protein")
    assert set(opened(paths[1]).var("X")["modality"]) == {"protein"}
    (report,) = ingested(tmp_path / "atlas", paths[0], join=[{"path": paths[1], "group": "protein"}]).reports
    assert report.cells_out == 20
    assert read(tmp_path / "atlas").X.sum() == rna.X.sum() + protein.X.sum()


SHARED = {
    "091964_subset_100_100.h5ad": None,
    "1a47f8_pbmc-small-x-csc.h5ad": "scaled",
    "1e5540_pbmc-small-x-dense.h5ad": "scaled",
    "1e912f_pbmc-small.h5ad": "",
    "368790_x-empty.h5ad": "No cell passes",
    "7405b6_xnone.h5ad": "no matrix",
    "d97078_bruce-nan.h5ad": "",
    "edfb34_bruce-spatial.h5ad": None,
    "f8b5af_categorical_int_nan.h5ad": "scaled",
}


@pytest.mark.parametrize("name", SHARED)
def test_real_files_are_read_through_tiledb_as_they_are_without(tmp_path: Path, shared_data: Path, name: str) -> None:
    from cellmill.errors import CellmillError

    path = shared_data / "formats/soma" / name
    uri = str(tmp_path / "exp")
    soma_io.from_h5ad(uri, str(path), measurement_name="RNA")
    direct, through = opened(path), opened(uri)
    assert list(through.places()) == list(direct.places())
    assert through.n_cells == direct.n_cells
    for place in direct.places():
        assert np.array_equal(whole(through, place), whole(direct, place), equal_nan=True)
        assert through.var(place).index.tolist() == direct.var(place).index.astype(str).tolist()
    direct.close()
    outcomes: list[Any] = []
    for atlas, source in (("a", path), ("b", uri)):
        try:
            (report,) = ingested(tmp_path / atlas, source).reports
            outcomes.append((report.cells_out, report.counts, report.genes))
        except CellmillError as error:
            outcomes.append((type(error), error.what))
    assert outcomes[0] == outcomes[1]


def test_damage_is_found(tmp_path: Path) -> None:
    uri = Path(write_soma(make_adata(20), str(tmp_path / "exp")))
    (data,) = uri.glob("ms/RNA/X/data/__fragments/*/a0.tdb")
    data.write_bytes(data.read_bytes()[:10])
    source = opened(uri)
    with pytest.raises(SourceError, match="TileDB-SOMA cannot read") as caught:
        whole(source)
    assert "cells 0 to 19" in caught.value.where
    for part in uri.glob("obs/__schema/*"):
        if part.is_file():
            part.write_bytes(b"x")
    with pytest.raises(SourceError, match="TileDB-SOMA cannot read"):
        opened(uri)


def test_a_group_that_is_no_experiment_is_refused(tmp_path: Path) -> None:
    uri = write_soma(make_adata(20), str(tmp_path / "exp"))
    with pytest.raises(SourceError, match="No format that is known"):
        opened(f"{uri}/ms")
    with pytest.raises(SourceError, match="no experiment"):
        opened(f"{uri}/ms", format="soma")


def test_without_tiledbsoma_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = write_soma(make_adata(20), str(tmp_path / "exp"))
    monkeypatch.setattr("cellmill.ingestion.sources.soma.find_spec", lambda name: None)
    with pytest.raises(SourceError, match="not installed") as caught:
        opened(uri)
    assert "cellmill[census]" in caught.value.fix


def test_releases_of_the_census_have_addresses() -> None:
    folder = f"s3://{CENSUS_BUCKET}/cell-census/2025-11-08/soma/census_data"
    assert address("census:2025-11-08") == f"{folder}/homo_sapiens"
    assert address("census:2025-11-08/mouse") == f"{folder}/mus_musculus"
    assert address("census:2025-11-08/macaca_mulatta") == f"{folder}/macaca_mulatta"
    for wrong in ("census:stable", "census:2025-11", "census:"):
        with pytest.raises(ConfigError, match="date"):
            address(wrong)
    settings = tiledb_config("census:2025-11-08")
    assert settings["vfs.s3.no_sign_request"] == "true"
    assert address("gs://bucket/exp") == "gcs://bucket/exp"
    assert address("/data/exp") == "/data/exp"
    place = Place("census:2025-11-08/homo_sapiens")
    assert (place.exists, place.is_dir, place.name, format_of(place.location)) == (True, True, "homo_sapiens", "soma")
