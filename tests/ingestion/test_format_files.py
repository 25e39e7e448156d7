"""Every file among the real ones, good and bad: ingested right, or refused by a message that names the cause."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pytest
from scipy import sparse

from cellmill.atlas import read
from cellmill.errors import CellmillError
from cellmill.ingestion import IngestConfig, SourceConfig, ingest
from cellmill.ingestion.dataset_report import DatasetReport

OLD = "anndata_archives/v{}/adata.{}"
SCHEMA = "cellxgene_schema/{}.h5ad"

COUNTS = {
    "10x/1.2.0/filtered_gene_bc_matrices": 12,
    "10x/1.2.0/filtered_gene_bc_matrices_h5.h5": 12,
    "10x/3.0.0/filtered_feature_bc_matrix": 1107,
    "10x/3.0.0/filtered_feature_bc_matrix.h5": 1107,
    "10x/10x-10k-subset.zarr": 9999,
    **{
        SCHEMA.format(f"example_invalid_{what}"): 320
        for what in (
            *("CL", "assay", "development_stage", "disease", "ethnicity", "obsm", "organism", "primary_data"),
            *("reserved_terms", "schema_version", "schema_version_absent", "sex", "tissue", "uns", "var", "var_raw"),
            "x_and_raw_x_not_equal",
        )
    },
    SCHEMA.format("h5ads__example_invalid_CL"): 320,
    SCHEMA.format("example_valid"): 2,
    SCHEMA.format("h5ads__example_valid"): 2,
    SCHEMA.format("example_with_labels"): 320,
    SCHEMA.format("example_with_labels2"): 320,
    SCHEMA.format("small_perturbations"): 500,
    "messy/celltypist_sample_559c_32786g.h5ad": 559,
    "messy/test__data__mouse_val.h5ad": 1000,
    "soma/091964_subset_100_100.h5ad": 6,
    "soma/edfb34_bruce-spatial.h5ad": 6430,
}
"""Files with counts, and how many of their cells have any."""

_NAMES = r"names \({}, .* are of no organism"
REFUSED = {
    "10x/1.2.0/multiple_genomes.h5": "There are 2 genomes: another_genome, hg19_chr21",
    **{OLD.format("0.11.4", kind): "has no matrix" for kind in ("h5ad", "zarr.zip")},
    **{
        OLD.format(v, kind): _NAMES.format("gene0")
        for v in ("0.7.0", "0.7.8", "0.13.3")
        for kind in ("h5ad", "zarr.zip")
    },
    OLD.format("0.5.0", "h5ad"): r"raw\.X: .*log-transformed.* X: .*scaled",
    SCHEMA.format("example_invalid_raw"): r"not integers \(such as 1\.5",
    SCHEMA.format("example_valid_modified"): r"not integers \(such as 1\.5",
    "messy/10x_pbmc68k_reduced.h5ad": r"raw\.X: .*log-transformed.* X: .*scaled",
    "messy/1e4dfec4-c0b2-46ad-a04e-ff3ffb3c0a8f.h5ad": _NAMES.format("0"),
    "messy/a95c59b4-7f5d-4b80-ad53-a694834ca18b.h5ad": _NAMES.format("0"),
    "messy/j_gene_test_data.h5ad": "has no matrix",
    "messy/mpfc-starmap.loom": r"names \(acss1, .* in lower case; .*, 98% are human genes and 100% are mouse",
    "messy/nan.h5ad": "NaN",
    "messy/worm_neuron_4186c_13488g_no_gene_names.h5": "holds X, Y at its root",
    "soma/1a47f8_pbmc-small-x-csc.h5ad": "scaled",
    "soma/1e5540_pbmc-small-x-dense.h5ad": "scaled",
    "soma/1e912f_pbmc-small.h5ad": r"raw\.X: .*log-transformed.* X: .*scaled",
    "soma/368790_x-empty.h5ad": "No cell passes",
    "soma/50cb4e_pbmc-small-x-csr.h5ad": "scaled",
    "soma/7405b6_xnone.h5ad": "has no matrix",
    "soma/842fc1_pbmc-small.h5ad": r"raw\.X: .*log-transformed.* X: .*scaled",
    "soma/ba1569_x-none.h5ad": "has no matrix",
    "soma/d97078_bruce-nan.h5ad": "NaN",
    "soma/f8b5af_categorical_int_nan.h5ad": "scaled",
}
"""Files without counts, or without genes that are known, and the cause that the message names."""


@pytest.fixture(scope="module")
def formats(shared_data: Path) -> Path:
    return shared_data / "formats"


@dataclass(frozen=True)
class Ingested:
    cells: Any
    report: DatasetReport


def _name(path: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "_", path)


def _config(atlas: Path, formats: Path, *paths: str) -> IngestConfig:
    sources = tuple(SourceConfig(path=str(formats / path), dataset=_name(path)) for path in paths)
    return IngestConfig(atlas=str(atlas), sources=sources, backend="local", duplicates={"policy": "keep"})


@pytest.fixture(scope="module")
def ingested(formats: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ingested]:
    """All files with counts, in one atlas by one call; but for copies of others, which one atlas does not take."""
    copies = [path for path in COUNTS if "/h5ads__" in path]
    found = {}
    for paths in (copies, [path for path in COUNTS if path not in copies]):
        atlas = tmp_path_factory.mktemp("formats") / "atlas"
        reports = {report.dataset: report for report in ingest(_config(atlas, formats, *paths)).reports}
        cells = read(atlas)
        for path in paths:
            mine = (cells.obs["dataset"] == _name(path)).to_numpy()
            found[path] = Ingested(cells[mine], reports[_name(path)])
    return found


def _as_others_read(path: Path, place: str) -> Any:
    """Return what anndata or scanpy reads; features are the index, or the column ``gene_ids``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if path.suffix == ".h5":
            import scanpy as sc

            adata = sc.read_10x_h5(path)
        elif path.is_dir() and path.suffix != ".zarr":
            import scanpy as sc

            folder = next(p.parent for p in path.rglob("matrix.mtx*"))
            adata = sc.read_10x_mtx(folder, var_names="gene_ids", make_unique=False)
        else:
            adata = ad.read_zarr(path) if path.suffix == ".zarr" else ad.read_h5ad(path)
        if place == "raw.X":
            adata = adata.raw.to_adata()
        for column in ("gene_ids", "ensembl_id"):
            if column in adata.var:
                adata.var_names = adata.var[column].astype(str)
    return adata


@pytest.mark.parametrize("path", COUNTS)
def test_counts_are_those_that_others_read(formats: Path, ingested: dict[str, Ingested], path: str) -> None:
    report, found = ingested[path].report, ingested[path].cells
    assert report.cells_out == COUNTS[path]
    assert report.cells_in == report.cells_out + sum(report.dropped.values())
    assert found.n_obs == COUNTS[path]
    expected = _as_others_read(formats / path, report.counts)
    rows = found.obs["source_row"].to_numpy()
    assert found.obs["barcode"].tolist() == expected.obs_names[rows].astype(str).tolist()
    wanted = sparse.csc_matrix(expected.X)[rows]
    assert sum(report.genes.umis.values()) == expected.X.sum()

    # By gene: every column whose name is that of one feature, by id or by symbol.
    ids = {name: i for i, name in enumerate(found.var_names)}
    named = Counter(found.var["symbol"].astype(str))
    symbols = {name: i for i, name in enumerate(found.var["symbol"].astype(str)) if named[name] == 1}
    names = [name.partition(".")[0] if name.startswith("ENS") else name for name in map(str, expected.var_names)]
    pairs = [(j, ids.get(name, symbols.get(name))) for j, name in enumerate(names)]
    times = Counter(i for _, i in pairs)
    alone = [(j, i) for j, i in pairs if i is not None and times[i] == 1]
    assert len(alone) > 0.6 * report.genes.genes_out
    theirs, ours = (list(part) for part in zip(*alone, strict=True))
    more = sparse.csc_matrix(found.X)[:, ours].astype(np.float64) - wanted[:, theirs]
    # Never less; and more only of genes that have another column under a former name.
    assert more.min() >= 0
    former = sum(n for status, n in report.genes.genes.items() if status in ("alias", "replaced"))
    assert np.count_nonzero(np.asarray(more.sum(axis=0))) <= former


@pytest.mark.parametrize("path", REFUSED)
def test_others_are_refused_by_their_cause(tmp_path: Path, formats: Path, path: str) -> None:
    with pytest.raises(CellmillError, match=REFUSED[path]) as caught:
        ingest(_config(tmp_path / "atlas", formats, path))
    assert caught.value.where.startswith(str(formats / path))
    assert caught.value.fix
    assert not (tmp_path / "atlas/shards").exists()


def test_symbols_in_lower_case_are_those_of_the_organism_that_is_named(tmp_path: Path, formats: Path) -> None:
    path = formats / "messy/mpfc-starmap.loom"
    source = SourceConfig(path=str(path), dataset="starmap", organism="mouse")
    atlas = tmp_path / "atlas"
    (report,) = ingest(IngestConfig(atlas=str(atlas), sources=(source,), backend="local")).reports
    with h5py.File(path) as file:
        names = file["row_attrs/Gene"].asstr()[:].tolist()
        matrix = file["matrix"][:]
    assert report.genes.genes == {"alias": len(names)}
    found = read(atlas)
    symbols = {symbol.lower(): i for i, symbol in enumerate(found.var["symbol"])}
    current = {"ctgf": "ccn2", "fam19a1": "tafa1", "nov": "ccn3"}
    columns = [symbols[current.get(name, name)] for name in names]
    rows = found.obs["source_row"].to_numpy()
    assert len(rows) > 100
    np.testing.assert_array_equal(found.X.toarray()[:, columns], matrix.T[rows])


def test_no_file_is_left_out(formats: Path) -> None:
    known = {*COUNTS, *REFUSED}
    files = (path.relative_to(formats) for path in formats.rglob("*") if path.is_file())
    left = [path for path in files if path.name != "readme.md" and not {str(path), *map(str, path.parents)} & known]
    assert not left
