"""Genes, peaks and proteins from file to atlas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cellmill.atlas import read
from cellmill.errors import ConfigError, GeneMappingError
from cellmill.genes import Status
from cellmill.ingestion import IngestConfig, SourceConfig, ingest
from cellmill.ingestion.pipeline import plan
from cellmill.ingestion.sources.modalities import TERMS
from tests.ingestion.cells import genes, make_adata, write

TYPES = ["Gene Expression"] * 6 + ["Peaks"] * 4 + ["Antibody Capture"] * 2 + ["CRISPR Guide Capture"] * 2
NAMES = [
    *genes(6),
    "chr1:100-200",
    "chr1:300-400",
    "chr2:100-200",
    "chr1:1-2",
    "CD3_TotalSeqB",
    "IgG1_control_TotalSeqB",
    "guide1",
    "guide2",
]


def mixed(n: int = 30, seed: int = 0) -> Any:
    counts = np.random.default_rng(seed).poisson(2.0, (n, len(NAMES)))
    var = pd.DataFrame({"feature_types": TYPES}, index=NAMES)
    obs = pd.DataFrame(index=[f"c{i}" for i in range(n)])
    return ad.AnnData(sparse.csr_matrix(counts.astype(np.float32)), obs, var)


def config(atlas: Path, path: Path, source: dict[str, Any] | None = None, **settings: Any) -> IngestConfig:
    one = SourceConfig(path=str(path), **{"dataset": "a", **(source or {})})
    return IngestConfig(atlas=str(atlas), sources=(one,), backend="local", **settings)


def frame(atlas: Path) -> pd.DataFrame:
    adata = read(str(atlas))
    return pd.DataFrame(adata.X.toarray(), index=adata.obs["barcode"].tolist(), columns=list(adata.var_names))


def test_columns_of_all_types_in_one_file(tmp_path: Path) -> None:
    adata = mixed()
    path = write(adata, tmp_path / "a.h5ad")
    source = {"organism": "human", "assembly": "hg38"}
    result = ingest(config(tmp_path / "atlas", path, source, peaks={"binarise": True}))
    (report,) = result.reports
    assert [part.modality for part in report.parts] == ["rna", "atac", "protein", "CRISPR Guide Capture"]
    assert [part.genes_in for part in report.parts] == [6, 4, 2, 2]
    assert [part.genes_out for part in report.parts] == [6, 4, 1, 0]
    sums = np.asarray(adata.X.sum(0)).ravel()
    assert [sum(part.umis.values()) for part in report.parts] == [
        sums[:6].sum(),
        sums[6:10].sum(),
        sums[10:12].sum(),
        sums[12:].sum(),
    ]
    assert report.others[2].genes == {"other_modality": 2}
    found = frame(tmp_path / "atlas").loc[adata.obs_names]
    dense = adata.X.toarray()
    assert np.array_equal(found[NAMES[:6]].to_numpy(), dense[:, :6])
    assert np.array_equal(found[[f"hg38:{name}" for name in NAMES[6:10]]].to_numpy(), dense[:, 6:10] > 0)
    assert np.array_equal(found["protein:human:CD3"].to_numpy(), dense[:, 10])
    assert found.shape[1] == 11


def test_cells_are_judged_by_their_genes(tmp_path: Path) -> None:
    adata = mixed()
    dense = adata.X.toarray()
    dense[:3, :6] = 0
    dense[:3, 6] = 50
    adata.X = sparse.csr_matrix(dense)
    path = write(adata, tmp_path / "a.h5ad")
    source = {"organism": "human", "assembly": "hg38"}
    (report,) = ingest(config(tmp_path / "atlas", path, source, quality={"min_genes": 1})).reports
    assert report.dropped == {"fewer genes than min_genes": 3}


def test_the_organism_is_recognised_by_the_genes_alone(tmp_path: Path) -> None:
    adata = mixed()
    path = write(adata[:, :12].copy(), tmp_path / "a.h5ad")
    (planned,) = plan(config(tmp_path / "atlas", path, {"assembly": "hg38"}))
    assert planned.organism == "human"
    with pytest.raises(ConfigError, match="mm10 is no assembly of human"):
        plan(config(tmp_path / "atlas", path, {"assembly": "mm10"}))
    proteins = write(adata[:, 10:12].copy(), tmp_path / "proteins.h5ad")
    with pytest.raises(GeneMappingError, match="do not say whose") as caught:
        plan(config(tmp_path / "atlas", proteins))
    assert "organism" in caught.value.fix


def peaks(names: list[str], **columns: Any) -> Any:
    counts = np.random.default_rng(4).poisson(1.0, (25, len(names)))
    counts[:, 0] = 1
    return ad.AnnData(
        sparse.csr_matrix(counts.astype(np.float32)),
        pd.DataFrame(index=[f"c{i}" for i in range(25)]),
        pd.DataFrame(columns, index=names),
    )


def test_peaks_need_their_assembly(tmp_path: Path) -> None:
    path = write(peaks(["1-100-200", "X-5-90"]), tmp_path / "a.h5ad")
    with pytest.raises(ConfigError, match="mean nothing without") as caught:
        plan(config(tmp_path / "atlas", path))
    assert caught.value.where is not None
    assert "a.h5ad" in caught.value.where
    assert "hg38, hg19, mm10, mm39" in caught.value.fix
    (planned,) = plan(config(tmp_path / "atlas", path, {"assembly": "GRCm38"}))
    assert [feature.id for feature in planned.mapping.features] == ["mm10:chr1:100-200", "mm10:chrX:5-90"]
    assert planned.organism == "mouse"


def test_a_file_may_name_the_genome_of_its_peaks(tmp_path: Path) -> None:
    adata = peaks(["1-100-200", "X-5-90"], genome=["GRCh38", "GRCh38"], feature_types=["Peaks", "Peaks"])
    (planned,) = plan(config(tmp_path / "atlas", write(adata, tmp_path / "a.h5ad")))
    assert planned.mapping.features[0].id == "hg38:chr1:100-200"


def test_what_is_read_from_an_atlas_goes_into_another_as_it_is(tmp_path: Path) -> None:
    path = write(mixed(), tmp_path / "a.h5ad")
    ingest(config(tmp_path / "atlas", path, {"assembly": "hg38", "organism": "human"}))
    again = read(str(tmp_path / "atlas"))
    ingest(config(tmp_path / "other", write(again, tmp_path / "b.h5ad")))
    pd.testing.assert_frame_equal(frame(tmp_path / "other").loc[again.obs_names], frame(tmp_path / "atlas"))


def test_peaks_from_columns_like_a_bed_file(tmp_path: Path) -> None:
    names = ["peak_1", "peak_2"]
    adata = peaks(names, chrom=["1", "chrX"], start=[100, 5], end=[200, 90])
    (planned,) = plan(config(tmp_path / "atlas", write(adata, tmp_path / "a.h5ad"), {"assembly": "hg38"}))
    assert [feature.id for feature in planned.mapping.features] == ["hg38:chr1:100-200", "hg38:chrX:5-90"]
    # Tables of genes have such columns too.
    rna = make_adata(10, 3)
    rna.var["chrom"], rna.var["start"], rna.var["end"] = "chr1", 5, 9
    (planned,) = plan(config(tmp_path / "atlas", write(rna, tmp_path / "b.h5ad")))
    assert [feature.id for feature in planned.mapping.features] == genes(3)


def test_data_sets_with_other_peaks_meet_in_one_set_of_regions(tmp_path: Path) -> None:
    bed = tmp_path / "regions.bed"
    bed.write_text("chr1\t100\t200\tA\nchr1\t200\t300\tB\n")
    first = peaks(["chr1:90-190", "chr1:150-300", "chr1:900-950"])
    second = peaks(["1-110-210", "1-205-290", "2-1-9"])
    second.obs_names = [f"d{i}" for i in range(25)]
    settings = {"peaks": {"regions": str(bed), "regions_assembly": "hg38", "max_peaks_lost": 0.5, "max_counts_lost": 1}}
    sources = tuple(
        SourceConfig(path=str(write(adata, tmp_path / f"{name}.h5ad")), assembly="hg38")
        for name, adata in (("a", first), ("b", second))
    )
    result = ingest(IngestConfig(atlas=str(tmp_path / "atlas"), sources=sources, backend="local", **settings))
    for report, adata in zip(result.reports, (first, second), strict=True):
        sums = np.asarray(adata.X.sum(0)).ravel()
        assert report.genes.umis_lost == pytest.approx(sums[2] / sums.sum())
        assert report.genes.genes[Status.NO_REGION] == 1
    assert result.reports[0].genes.genes[Status.SPLIT] == 1
    found = frame(tmp_path / "atlas")
    assert list(found) == ["hg38:chr1:100-200", "hg38:chr1:200-300"]
    expected = np.vstack([first.X.toarray()[:, :2], second.X.toarray()[:, :2]])
    assert np.array_equal(found.loc[[*first.obs_names, *second.obs_names]].to_numpy(), expected)
    # Other regions are another result, the same regions in another file are not.
    assert not ingest(IngestConfig(atlas=str(tmp_path / "atlas"), sources=sources, backend="local", **settings)).changed
    bed.write_text("chr1\t100\t300\n")
    assert ingest(IngestConfig(atlas=str(tmp_path / "atlas"), sources=sources, backend="local", **settings)).changed
    limit = {"peaks": {**settings["peaks"], "max_counts_lost": 0.05}}
    with pytest.raises(GeneMappingError, match="of the counts have no place"):
        ingest(IngestConfig(atlas=str(tmp_path / "other"), sources=sources, backend="local", **limit))
    with pytest.raises(ConfigError, match="peaks are of hg19, the regions of hg38"):
        plan(config(tmp_path / "other", tmp_path / "a.h5ad", {"assembly": "hg19"}, **settings))
    gone = {"peaks": {**settings["peaks"], "regions": str(tmp_path / "none.bed")}}
    with pytest.raises(ConfigError, match="does not exist"):
        plan(config(tmp_path / "other", tmp_path / "a.h5ad", {"assembly": "hg38"}, **gone))


def test_settings_of_peaks_do_not_touch_data_sets_without_any(tmp_path: Path) -> None:
    path = write(make_adata(10, 5), tmp_path / "a.h5ad")
    (one,) = plan(config(tmp_path / "atlas", path))
    (other,) = plan(config(tmp_path / "atlas", path, peaks={"binarise": True}, proteins={"controls": "keep"}))
    assert one.digest == other.digest


def test_spelt_modality_decides(tmp_path: Path) -> None:
    adata = peaks(["CD3", "CD4", "CD19"])
    source = {"organism": "human", "modality": "protein"}
    (planned,) = plan(config(tmp_path / "atlas", write(adata, tmp_path / "a.h5ad"), source))
    assert [feature.id for feature in planned.mapping.features] == [
        "protein:human:CD3",
        "protein:human:CD4",
        "protein:human:CD19",
    ]
    assert set(TERMS.values()) == {"rna", "atac", "protein"}
