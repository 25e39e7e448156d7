"""10x HDF5 files and MatrixMarket folders, against scanpy's readers."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.io
from scipy import sparse

from cellmill.errors import SourceError
from cellmill.ingestion import SourceConfig, ingest
from cellmill.ingestion.config import DuplicateConfig
from tests.ingestion.cells import config, counts, genes
from tests.ingestion.sources.opened import cache as cache
from tests.ingestion.sources.opened import format_of, opened, whole

pytestmark = pytest.mark.usefixtures("cache")

REAL = [
    "1.2.0/filtered_gene_bc_matrices_h5.h5",
    "1.2.0/filtered_gene_bc_matrices/hg19_chr21",
    "3.0.0/filtered_feature_bc_matrix.h5",
    "3.0.0/filtered_feature_bc_matrix",
]


def matrix(n_cells: int = 20, n_genes: int = 12, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return sparse.csc_matrix(rng.poisson(0.8, (n_genes, n_cells)).astype(np.int32))


def write_v3(path: Path, n_cells: int = 20, types: list[str] | None = None, genomes: list[str] | None = None) -> Any:
    types = types or ["Gene Expression"] * 12
    found = matrix(n_cells)
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        for key, values in (("data", found.data), ("indices", found.indices.astype(np.int64))):
            group.create_dataset(key, data=values, chunks=(16,), compression="gzip")
        group["indptr"] = found.indptr.astype(np.int64)
        group["shape"] = np.array(found.shape, np.int32)
        group["barcodes"] = np.array([f"C{i}-1" for i in range(n_cells)], "S18")
        features = group.create_group("features")
        features["id"] = np.array(genes(12), "S20")
        features["name"] = np.array([f"N{i}" for i in range(12)], "S20")
        features["feature_type"] = np.array(types, "S20")
        features["genome"] = np.array(genomes or ["GRCh38"] * 12, "S20")
    return found


def write_v2(path: Path, genomes: dict[str, int]) -> dict[str, Any]:
    found = {name: matrix(20, seed=seed) for name, seed in genomes.items()}
    with h5py.File(path, "w") as file:
        for name, one in found.items():
            group = file.create_group(name)
            group["data"], group["indices"], group["indptr"] = one.data, one.indices, one.indptr
            group["shape"] = np.array(one.shape, np.int32)
            group["barcodes"] = np.array([f"{name}-{i}" for i in range(20)], "S18")
            group["genes"] = np.array(genes(12), "S20")
            group["gene_names"] = np.array([f"N{i}" for i in range(12)], "S20")
    return found


def write_mtx(
    folder: Path, prefix: str = "", *, modern: bool = True, types: list[str] | None = None, ids: list[str] | None = None
) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    found = matrix()
    plain = folder / "plain.mtx"
    scipy.io.mmwrite(plain, found)
    ids = ids or genes(12)
    rows = [[ids[i], f"N{i}", *((types or ["Gene Expression"] * 12)[i : i + 1] if modern else [])] for i in range(12)]
    tables = {
        "matrix.mtx": plain.read_bytes(),
        "features.tsv" if modern else "genes.tsv": "".join("\t".join(row) + "\n" for row in rows).encode(),
        "barcodes.tsv": "".join(f"C{i}-1\n" for i in range(20)).encode(),
    }
    plain.unlink()
    for name, data in tables.items():
        (folder / f"{prefix}{name}{'.gz' if modern else ''}").write_bytes(gzip.compress(data) if modern else data)
    return found


@pytest.mark.parametrize("name", REAL)
def test_real_files_equal_what_scanpy_reads(shared_data: Path, name: str) -> None:
    path = shared_data / "formats/10x" / name
    wanted: Any = sc.read_10x_mtx(path, var_names="gene_ids") if path.is_dir() else sc.read_10x_h5(path)
    source = opened(path)
    assert np.array_equal(whole(source, step=7), wanted.X.toarray())
    assert source.obs([]).index.tolist() == wanted.obs_names.tolist()
    var = source.var("X")
    assert var["gene_ids"].tolist() == (wanted.var_names if path.is_dir() else wanted.var["gene_ids"]).tolist()
    assert var["gene_symbols"].tolist() == (wanted.var["gene_symbols"] if path.is_dir() else wanted.var_names).tolist()
    assert source.default_names("X") == ("gene_ids", "gene_symbols")
    assert set(var["modality"]) == {"rna"}
    assert np.array_equal(np.diff(np.asarray(source.starts("X"))), wanted.X.getnnz(axis=1))
    source.close()


def test_real_folders_of_results_are_searched_for_the_filtered_matrix(shared_data: Path) -> None:
    folder = shared_data / "formats/10x"
    for name, same in (("3.0.0", REAL[2]), ("1.2.0/filtered_gene_bc_matrices", REAL[1])):
        assert format_of(folder / name) == "10x_outs"
        found, wanted = opened(folder / name), opened(folder / same)
        assert np.array_equal(whole(found), whole(wanted))
        assert found.digest == wanted.digest


def test_a_real_file_of_several_genomes_asks_which(shared_data: Path) -> None:
    path = shared_data / "formats/10x/1.2.0/multiple_genomes.h5"
    with pytest.raises(SourceError, match="2 genomes: another_genome, hg19_chr21") as caught:
        opened(path)
    assert "genome: another_genome" in caught.value.fix
    with pytest.raises(SourceError, match="no genome 'mm10'"):
        opened(path, genome="mm10")
    wanted = sc.read_10x_h5(path, genome="hg19_chr21").X.toarray()
    source = opened(path, genome="hg19_chr21")
    assert np.array_equal(whole(source), wanted)
    assert source.digest != opened(path, genome="another_genome").digest


def test_features_of_one_genome_of_several_and_of_none(tmp_path: Path) -> None:
    types = ["Gene Expression"] * 8 + ["Antibody Capture"] * 2 + ["Peaks", "Custom"]
    genomes = ["GRCh38"] * 5 + ["mm10"] * 3 + [""] * 4
    found = write_v3(tmp_path / "a.h5", types=types, genomes=genomes).toarray().T
    with pytest.raises(SourceError, match="GRCh38, mm10"):
        opened(tmp_path / "a.h5")
    source = opened(tmp_path / "a.h5", genome="mm10")
    columns = [5, 6, 7, 8, 9, 10, 11]
    assert np.array_equal(whole(source, step=3), found[:, columns])
    var = source.var("X")
    assert var["gene_ids"].tolist() == [genes(12)[i] for i in columns]
    assert var["modality"].tolist() == ["rna"] * 3 + ["protein"] * 2 + ["atac", "Custom"]


def test_genomes_of_folders_are_told_by_the_prefixes_of_genes(tmp_path: Path) -> None:
    ids = [f"GRCh38_{gene}" for gene in genes(6)] + [f"mm10___ENSMUSG0000000{i}" for i in range(6)]
    found = write_mtx(tmp_path, ids=ids).toarray().T
    with pytest.raises(SourceError, match="2 genomes: GRCh38, mm10"):
        opened(tmp_path)
    assert np.array_equal(whole(opened(tmp_path, genome="mm10"), step=6), found[:, 6:])


@pytest.mark.parametrize("modern", [True, False])
@pytest.mark.parametrize("kind", ["folder", "outs", "file", "prefixed", "transposed"])
def test_folders_of_every_kind(tmp_path: Path, kind: str, modern: bool) -> None:
    folder = tmp_path / ("run/outs/filtered_feature_bc_matrix" if kind == "outs" else "sample")
    found = write_mtx(folder, "GSM1_" if kind == "prefixed" else "", modern=modern)
    gz = ".gz" if modern else ""
    if kind == "transposed":
        scipy.io.mmwrite(folder / "matrix.mtx", found.T.tocsc())
        if modern:
            (folder / "matrix.mtx.gz").write_bytes(gzip.compress((folder / "matrix.mtx").read_bytes()))
            (folder / "matrix.mtx").unlink()
    path = {"outs": tmp_path / "run", "file": folder / f"matrix.mtx{gz}"}.get(kind, folder)
    assert format_of(path) == ("10x_outs" if kind == "outs" else "10x_mtx")
    source = opened(path)
    assert np.array_equal(whole(source, step=3), found.toarray().T)
    assert source.n_cells == 20
    source.close()


def test_several_samples_in_one_folder_are_named_one_by_one(tmp_path: Path) -> None:
    for prefix in ("GSM1_", "GSM2_"):
        write_mtx(tmp_path / "geo", prefix)
    with pytest.raises(SourceError, match="2 matrices: GSM1_matrix") as caught:
        opened(tmp_path / "geo")
    assert "GSM1_matrix.mtx.gz" in caught.value.fix
    settings = config(tmp_path / "atlas", tmp_path / "geo" / "*_matrix.mtx.gz", source={"dataset": "geo"})
    # The two samples have the same cells, under other names.
    result = ingest(settings.model_copy(update={"duplicates": DuplicateConfig(policy="keep")}))
    assert [report.cells_in for report in result.reports] == [20, 20]


def test_what_is_ingested_equals_the_folder_and_twice_changes_nothing(tmp_path: Path) -> None:
    found = write_mtx(tmp_path / "a")
    write_v3(tmp_path / "b.h5")
    settings = config(tmp_path / "atlas", tmp_path / "a", shard_cells=7)
    assert ingest(settings).changed
    assert not ingest(settings).changed
    wanted = pd.DataFrame(found.toarray().T.astype(float), index=[f"C{i}-1" for i in range(20)], columns=genes(12))
    pd.testing.assert_frame_equal(counts(tmp_path / "atlas"), wanted.sort_index().sort_index(axis=1))
    again = ingest(config(tmp_path / "again", tmp_path / "b.h5"))
    assert again.reports[0].cells_out == 20
    pd.testing.assert_frame_equal(counts(tmp_path / "again"), counts(tmp_path / "atlas"))


def test_each_genome_of_a_file_can_be_a_data_set(tmp_path: Path) -> None:
    found = write_v2(tmp_path / "a.h5", {"hg19": 1, "mm10": 2})
    first = config(tmp_path / "atlas", tmp_path / "a.h5")
    sources = tuple(
        SourceConfig(path=str(tmp_path / "a.h5"), organism="human", dataset=name, genome=name) for name in found
    )
    ingest(first.model_copy(update={"sources": sources}))
    kept = counts(tmp_path / "atlas")
    for name, one in found.items():
        rows = [f"{name}-{i}" for i in range(20)]
        assert np.array_equal(kept.loc[rows, genes(12)].to_numpy(), one.toarray().T)


def replace(group: str, key: str, values: Any) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        write_v3(path)
        with h5py.File(path, "r+") as file:
            del file[group][key]
            if values is not None:
                file[group][key] = values

    return make


def huge(path: Path) -> None:
    write_v3(path)
    with h5py.File(path, "r+") as file:
        del file["matrix/data"]
        file["matrix"].create_dataset("data", (10**10,), np.int32, chunks=(1 << 20,), compression="gzip")


def cut(path: Path) -> None:
    write_v3(path)
    path.write_bytes(path.read_bytes()[:-500])


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (replace("matrix", "indptr", None), "no indptr"),
        (replace("matrix", "shape", np.array([12, 21])), "20 barcodes, but the matrix has 21"),
        (replace("matrix", "shape", np.array([3])), "shape"),
        (replace("matrix", "shape", np.array([-12, 20])), "shape"),
        (replace("matrix/features", "id", np.array(["a"] * 11, "S3")), "11 id, but the matrix has 12"),
        (replace("matrix/features", "id", np.array([b"\xff\xfe"] * 12, "S3")), "not UTF-8"),
        (replace("matrix", "barcodes", np.zeros((20, 2))), "2 dimensions"),
        (replace("matrix", "indices", np.full(5, -1)), "inconsistent"),
        (huge, "GB"),
        (cut, "cut short"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, make: Callable[[Path], None], what: str) -> None:
    make(tmp_path / "a.h5")
    with pytest.raises(SourceError, match=what) as caught:
        opened(tmp_path / "a.h5")
    assert "a.h5" in caught.value.where


@pytest.mark.parametrize("index", [-1, 12])
def test_indices_outside_are_refused_when_they_are_read(tmp_path: Path, index: int) -> None:
    found = matrix()
    replace("matrix", "indices", np.r_[found.indices[:-1].astype(np.int64), index])(tmp_path / "a.h5")
    with pytest.raises(SourceError, match="columns that are not there"):
        whole(opened(tmp_path / "a.h5"))


def drop(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def rewrite(name: str, data: bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(gzip.compress(data))

    return change


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (drop("barcodes.tsv.gz"), "no barcodes.tsv"),
        (drop("features.tsv.gz"), "no features.tsv"),
        (rewrite("barcodes.tsv.gz", b"A\nB\n"), "12 rows and 20 columns, but there are 12 features and 2 barcodes"),
        (rewrite("barcodes.tsv.gz", b""), "no cells"),
        (rewrite("features.tsv.gz", b"A\tB\nC\n"), "different numbers of columns"),
        (rewrite("features.tsv.gz", b"\xff\xfe\n"), "UTF-8"),
        (rewrite("barcodes.tsv.gz", b"A" * (1 << 27)), "grown"),
        (rewrite("matrix.mtx.gz", b"%%MatrixMarket matrix coordinate integer general\n12 20 7\n1 1 1\n"), "fewer"),
    ],
)
def test_bad_folders_are_refused_and_leave_nothing_behind(
    tmp_path: Path, cache: Path, change: Callable[[Path], None], what: str
) -> None:
    write_mtx(tmp_path / "a")
    change(tmp_path / "a")
    with pytest.raises(SourceError, match=what) as caught:
        opened(tmp_path / "a")
    assert str(tmp_path / "a") in caught.value.where
    assert not list(cache.glob("prepared/*/*"))


def test_prepared_rows_are_made_once_bounded_and_outlive_their_deletion(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = write_mtx(tmp_path / "a")
    monkeypatch.setenv("CELLMILL_CACHE_GB", "0")
    first = opened(tmp_path / "a")
    (made,) = (path for path in (cache / "prepared").iterdir() if path.is_dir())
    stamp = (made / "data").stat().st_mtime_ns
    opened(tmp_path / "a").close()
    assert (made / "data").stat().st_mtime_ns == stamp
    write_mtx(tmp_path / "b", "x_")
    opened(tmp_path / "b").close()
    assert not made.exists()
    assert np.array_equal(whole(first), found.toarray().T)
    first.close()
    shutil.rmtree(cache)
