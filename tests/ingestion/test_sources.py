from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cellmill.atlas import read
from cellmill.errors import CountsError, SourceError
from cellmill.ingestion import IngestConfig, ingest
from cellmill.ingestion.config import SourceConfig
from cellmill.ingestion.opening import close_source, open_source
from cellmill.ingestion.pipeline import plan
from cellmill.ingestion.sources import AnnDataSource, Place, Source, matrix, registry
from tests.ingestion.cells import config, counts, expected, make_adata, write


def open_h5ad(path: Path, name: str) -> Source:
    return registry.open_source(Place(path), name, SourceConfig(path=str(path)))


KINDS = {"csr": sparse.csr_matrix, "csc": sparse.csc_matrix, "dense": np.asarray}


@pytest.mark.parametrize("stored", ["dense", "sparse", "in memory"])
def test_floats_wider_than_double_precision_are_read_as_that(tmp_path: Path, stored: str) -> None:
    adata = make_adata(23, 11)
    wide = adata.X.toarray().astype(np.longdouble)
    assert wide.dtype.itemsize > 8
    path = write(adata, tmp_path / "a.h5ad")
    with h5py.File(path, "r+") as file:
        key, values = ("X", wide) if stored == "dense" else ("X/data", file["X/data"][:].astype(np.longdouble))
        del file[key]
        file[key] = values
        if stored == "dense":
            file["X"].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    source = AnnDataSource(ad.AnnData(wide, adata.obs, adata.var), "a")
    own = {"atlas": str(tmp_path / "atlas"), "sources": [{"path": str(path), "organism": "human"}]}
    if stored == "in memory":
        np.testing.assert_array_equal(source.rows("X", 0, 23).toarray(), wide)
        assert source.rows("X", 0, 23).dtype == np.float64
        return
    report = ingest(IngestConfig.model_validate({**own, "backend": "local"})).reports[0]
    assert sum(report.genes.umis.values()) == wide.sum()
    with pytest.raises(CountsError, match="more than double precision"):
        matrix.native(np.array([1, np.longdouble(2**53) + 1]), "here")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["uint8", "uint64", ">i4", "float32", ">f8", "float16"])
@pytest.mark.parametrize("place", ["X", "raw.X", "layers/counts"])
def test_rows_of_every_encoding(
    tmp_path: Path, kind: str, dtype: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matrix, "_ENTRIES_AT_ONCE", 37)
    dense = make_adata(23, 11).X.toarray() % 50
    adata = ad.AnnData(np.zeros((23, 11), np.float32))
    values = KINDS[kind](dense.astype(dtype if kind == "dense" else np.float32))
    if place == "X":
        adata.X = values
    elif place == "raw.X":
        adata.raw = ad.AnnData(values)
    else:
        adata.layers["counts"] = values
    path = write(adata, tmp_path / "a.h5ad")
    if kind != "dense":
        # Others write sparse values that scipy does not know.
        with h5py.File(path, "r+") as file:
            group = file[place.replace(".", "/")]
            data = group["data"][:].astype(dtype)
            del group["data"]
            group["data"] = data
    for source in (open_h5ad(path, "a"), AnnDataSource(adata, "a")):
        assert place in source.places()
        for start, stop in ((0, 23), (0, 0), (5, 6), (7, 19)):
            assert np.array_equal(source.rows(place, start, stop).toarray(), dense[start:stop])
        source.close()


def test_metadata_of_every_type_is_read_alike_from_a_file_and_from_memory(tmp_path: Path) -> None:
    adata = make_adata(9)
    adata.obs["text"] = [f"t{i}" for i in range(9)]
    adata.obs["flag"] = [True, False, True] * 3
    adata.obs["maybe"] = pd.array([1, None, 3] * 3, dtype="Int64")
    adata.obs["gap"] = pd.Categorical(["a", None, "b"] * 3)
    path = write(adata, tmp_path / "a.h5ad")
    source, memory = open_h5ad(path, "a"), AnnDataSource(adata, "a")
    names = source.obs_columns()
    assert names == memory.obs_columns()
    for rows in ((0, None), (3, 7), (4, 4)):
        pd.testing.assert_frame_equal(
            source.obs(names, *rows),
            memory.obs(names, *rows),
            check_dtype=False,
            check_index_type=False,
            check_categorical=False,
        )
    result = ingest(config(tmp_path / "atlas", path, source={"obs": {name: name for name in names}}))
    assert result.reports[0].cells_out == 9
    cells = read(tmp_path / "atlas").obs.set_index("barcode").loc[adata.obs_names]
    assert cells["text"].tolist() == adata.obs["text"].tolist()
    assert cells["gap"].isna().tolist() == [False, True, False] * 3
    assert cells["maybe"].isna().tolist() == [False, True, False] * 3
    assert cells["flag"].tolist() == [True, False, True] * 3


def test_a_file_that_changes_between_planning_and_reading_is_refused(tmp_path: Path) -> None:
    path = write(make_adata(9), tmp_path / "a.h5ad")
    (planned,) = plan(config(tmp_path / "atlas", path))
    open_source(planned)
    close_source()
    write(make_adata(10), path)
    with pytest.raises(SourceError, match="changed while"):
        open_source(planned)


def test_files_are_let_go_of(tmp_path: Path) -> None:
    path = write(make_adata(9), tmp_path / "a.h5ad")
    ingest(config(tmp_path / "atlas", path))
    write(make_adata(12), path)
    with h5py.File(path, "r+"):
        pass


SHARED = [("pbmc_3chemistries/pbmc_3p1_3p2_5p_1200c_1767g_counts.h5ad", "X")]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "place"), SHARED)
def test_real_files_equal_what_anndata_reads(tmp_path: Path, shared_data: Path, name: str, place: str) -> None:
    settings = config(tmp_path / "atlas", shared_data / name, shard_cells=500, duplicates={"policy": "keep"})
    source = settings.sources[0].model_copy(update={"organism": "auto"})
    (report,) = ingest(settings.model_copy(update={"sources": (source,)})).reports
    assert report.counts == place
    adata: Any = ad.read_h5ad(shared_data / name)
    adata = adata.raw.to_adata() if place == "raw.X" else adata
    found = read(tmp_path / "atlas")
    rows = found.obs["source_row"].to_numpy()
    assert found.obs["barcode"].tolist() == adata.obs_names[rows].astype(str).tolist()
    kept = sum(report.genes.umis[status] for status in report.genes.umis if status in ("matched", "alias", "replaced"))
    assert found.X.sum() == kept
    assert sum(report.genes.umis.values()) == adata.X.sum()
    same = [gene for gene in found.var_names if gene in adata.var_names]
    if same:
        assert abs(found[:, same].X - sparse.csr_matrix(adata[rows][:, same].X)).sum() == 0


REFUSED = [("pbmc_3chemistries/pbmc_3p1_3p2_5p_1200c_1767g_lognorm_only.h5ad", "log-transformed")]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "what"), REFUSED)
def test_real_files_without_counts_are_refused(tmp_path: Path, shared_data: Path, name: str, what: str) -> None:
    from cellmill.errors import CellmillError

    with pytest.raises(CellmillError, match=what) as caught:
        ingest(config(tmp_path / "atlas", shared_data / name))
    assert name in caught.value.where


def test_chunked_reading_is_right_across_chunks(tmp_path: Path) -> None:
    from tests.ingestion.test_ingest import many_chunks

    adata = make_adata(50)
    adata.X = sparse.csc_matrix(adata.X)
    settings = many_chunks(config(tmp_path / "atlas", write(adata, tmp_path / "a.h5ad"), shard_cells=12))
    assert len(plan(settings)[0].chunks) > 3
    ingest(settings)
    pd.testing.assert_frame_equal(counts(tmp_path / "atlas"), expected([adata]))


def test_a_matrix_by_columns_is_gone_over_once_however_many_chunks_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.ingestion.test_ingest import many_chunks

    monkeypatch.setenv("CELLMILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(matrix, "_ENTRIES_AT_ONCE", 997)
    monkeypatch.setattr(matrix, "_LOOK_CELLS", 16)
    adata = make_adata(600, 30)
    by_cells = write(adata, tmp_path / "cells.h5ad")
    adata.X = sparse.csc_matrix(adata.X)
    path = write(adata, tmp_path / "a.h5ad")
    passes = []
    real = matrix.H5Matrix._entries

    def counted(self: Any) -> Any:
        passes.append(1)
        return real(self)

    monkeypatch.setattr(matrix.H5Matrix, "_entries", counted)
    ingest(many_chunks(config(tmp_path / "one", path, shard_cells=100)))
    # Two looks to find the counts, and one pass to transpose; another process of the machine needs only the looks.
    assert len(passes) <= 3
    passes.clear()
    ingest(many_chunks(config(tmp_path / "two", path, shard_cells=100)))
    assert len(passes) <= 2
    ingest(config(tmp_path / "three", by_cells, shard_cells=100))
    pd.testing.assert_frame_equal(counts(tmp_path / "one"), counts(tmp_path / "three"))
