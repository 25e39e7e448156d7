"""Every real data set with counts goes into one atlas with one command, and what is lost is what is said to be lost."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from cellmill.atlas import Atlas, read
from cellmill.cli import app
from cellmill.errors import CountsError
from cellmill.genes import harmonise
from cellmill.genes.tables import read_table
from cellmill.ingestion import IngestConfig, SourceConfig, ingest

CONFIG = """
atlas: {atlas}
backend: local
sources:
- path: {data}/kang_ifnb/kang_ctrl_12261c_1287g_counts_ensembl.h5ad
  dataset: kang_ctrl
  obs: {{cluster_id: cell_type, sample_id: donor_id}}
  licence: GPL-3.0
- path: {data}/kang_ifnb/kang_ctrl_stim_2000c_9015g_counts.h5ad
  dataset: kang_ifnb
  obs: {{condition: condition}}
  licence: GPL-3.0
- path: {data}/papalexi_eccite/papalexi_eccite_20729c_299g_counts.h5ad
  dataset: papalexi
  obs: {{target: perturbation, guide: guide, bio_rep: batch}}
  licence: MIT
- path: {data}/pbmc_3chemistries/pbmc_3p1_3p2_5p_1200c_1767g_counts.h5ad
  dataset: pbmc_3chemistries
  obs: {{cell_type: cell_type, chemistry: batch}}
  licence: GPL-3.0
- path: {data}/citeseq_pbmc/pbmc10k_6855c_4000g_14p_counts.h5ad
  dataset: citeseq
  join: [{{counts: obsm/protein_counts}}]
- path: {data}/multiome_a549/a549_rna_2641c_1185g_counts_recovered.h5ad
  dataset: a549
  obs: {{time_h: time_h}}
  join: [{{path: {data}/multiome_a549/a549_atac_2641c_52761p_binary.h5ad, assembly: hg19}}]
  licence: GPL-3.0
"""


@dataclass(frozen=True)
class Ingested:
    """An atlas, and what the command printed."""

    atlas: Path
    result: dict[str, Any]

    def report(self, name: str) -> dict[str, Any]:
        """Return a data set's report."""
        return next(one for one in self.result["reports"] if one["dataset"] == name)

    def read(self, name: str) -> Any:
        """Return a data set's cells, by barcode."""
        adata = read(str(self.atlas), where=f"dataset == '{name}'")
        adata.obs_names = adata.obs["barcode"].astype(str)
        return adata


@pytest.fixture(scope="module")
def ingested(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Ingested:
    """Ingest everything with one command."""
    folder = tmp_path_factory.mktemp("real")
    path = folder / "atlas.yaml"
    path.write_text(CONFIG.format(atlas=folder / "atlas", data=shared_data))
    outcome = CliRunner().invoke(app, ["ingest", str(path), "--json"])
    assert outcome.exit_code == 0, outcome.output
    text = outcome.stdout
    return Ingested(folder / "atlas", json.loads(text[text.index("{") :]))


FILES = {
    "kang_ctrl": "kang_ifnb/kang_ctrl_12261c_1287g_counts_ensembl.h5ad",
    "kang_ifnb": "kang_ifnb/kang_ctrl_stim_2000c_9015g_counts.h5ad",
    "papalexi": "papalexi_eccite/papalexi_eccite_20729c_299g_counts.h5ad",
    "pbmc_3chemistries": "pbmc_3chemistries/pbmc_3p1_3p2_5p_1200c_1767g_counts.h5ad",
    "citeseq": "citeseq_pbmc/pbmc10k_6855c_4000g_14p_counts.h5ad",
    "a549": "multiome_a549/a549_rna_2641c_1185g_counts_recovered.h5ad",
}


def _known() -> dict[str, str]:
    """Return every name that the bundled tables give to one human gene, by plain look-up."""
    genes, names, retired = (read_table(f"human_{name}") for name in ("genes", "names", "retired"))
    known = dict(zip(names["name"], names["id"], strict=True))
    owned = genes[genes["owner"]]
    known |= dict(zip(owned["symbol"], owned["id"], strict=True)) | dict(
        zip(retired["retired"], retired["id"], strict=True)
    )
    return {name: gene for name, gene in {**known, **{gene: gene for gene in genes["id"]}}.items() if gene}


@pytest.mark.parametrize(("name", "most"), [(name, 0.03 if name == "a549" else 0.003) for name in FILES])
def test_genes_and_umis_of_each_data_set(ingested: Ingested, shared_data: Path, name: str, most: float) -> None:
    adata = ad.read_h5ad(shared_data / FILES[name])
    sums = np.asarray(adata.X.sum(0), dtype=np.float64).ravel()
    genes = ingested.report(name)["genes"]
    assert sum(genes["umis"].values()) == sums.sum()
    assert sum(genes["genes"].values()) == adata.n_vars
    assert genes["umis_lost"] <= most
    known = _known()
    ids = [known.get(re.sub(r"^C(\w{1,2})ORF", r"C\1orf", symbol)) for symbol in adata.var_names]
    if "feature" in adata.var:
        ids = [gene or known.get(symbol) for gene, symbol in zip(ids, adata.var["feature"], strict=True)]
    lost = sums[[gene is None for gene in ids]].sum() / sums.sum()
    # Beyond plain look-up are only names that were made unique or mangled.
    assert lost - 0.001 <= genes["umis_lost"] <= lost
    mine = ingested.read(name)
    kept = mine[:, mine.var["modality"] == "rna"]
    assert kept.X.sum() == pytest.approx(sums.sum() * (1 - genes["umis_lost"]), abs=0.5)
    found = pd.DataFrame(kept.X.toarray(), index=kept.obs_names, columns=kept.var_names)
    expected = pd.DataFrame(adata.X.toarray(), index=adata.obs_names, columns=ids)
    expected = expected.loc[:, expected.columns.notna()].T.groupby(level=0).sum().T
    assert set(expected.columns) <= set(found.columns)
    difference = (found.loc[expected.index, expected.columns] - expected).abs().to_numpy().sum()
    assert difference <= sums.sum() * 0.001


def test_all_cells_are_there_and_a_second_run_changes_nothing(ingested: Ingested, shared_data: Path) -> None:
    snapshot = Atlas.open(str(ingested.atlas)).snapshot()
    sizes = {name: ad.read_h5ad(shared_data / path, backed="r").n_obs for name, path in FILES.items()}
    table = snapshot.cells(["dataset", "perturbation"]).to_pandas()
    reports = {report["dataset"]: report for report in ingested.result["reports"]}
    assert {name: reports[name]["cells_in"] for name in sizes} == sizes
    assert table["dataset"].value_counts().to_dict() == {name: reports[name]["cells_out"] for name in sizes}
    assert {name: reports[name]["cells_out"] for name in sizes} == sizes
    targets = ad.read_h5ad(shared_data / FILES["papalexi"]).obs["target"].value_counts()
    here = table.loc[table["dataset"] == "papalexi", "perturbation"].value_counts()
    assert here.to_dict() == targets[targets > 0].to_dict()
    outcome = CliRunner().invoke(app, ["ingest", str(ingested.atlas.parent / "atlas.yaml"), "--json"])
    assert outcome.exit_code == 0, outcome.output
    again = json.loads(outcome.stdout[outcome.stdout.index("{") :])
    assert (again["changed"], len(again["unchanged"])) == (False, 6)


def test_ids_and_symbols_of_one_file_lead_to_the_same_genes(shared_data: Path) -> None:
    """The two ways are independent: the table of ids of one release, and the symbols of the time."""
    adata = ad.read_h5ad(shared_data / FILES["kang_ctrl"], backed="r")
    ids = harmonise(adata.var_names.tolist(), organism="human")
    symbols = harmonise(adata.var["feature"].tolist(), organism="human")
    pairs = [
        (ids.features[a].id, symbols.features[b].id)
        for a, b in zip(ids.target, symbols.target, strict=True)
        if a >= 0 and b >= 0
    ]
    assert len(pairs) > 1250
    assert np.mean([a == b for a, b in pairs]) > 0.997  # three symbols have moved to another id


def test_proteins_without_the_marks_of_their_panel(ingested: Ingested, shared_data: Path) -> None:
    table = ad.read_h5ad(shared_data / FILES["citeseq"]).obsm["protein_counts"]
    mine = ingested.read("citeseq")[table.index]
    proteins = mine[:, mine.var["modality"] == "protein"]
    names = [f"protein:human:{name.removesuffix('_TotalSeqB').upper()}" for name in table.columns]
    assert np.array_equal(proteins[:, names].X.toarray(), table.to_numpy())
    (report,) = ingested.report("citeseq")["others"]
    assert (report["modality"], report["genes_out"], report["umis_lost"]) == ("protein", 14, 0)
    assert sum(report["umis"].values()) == table.to_numpy().sum()


def test_peaks_beside_genes(ingested: Ingested, shared_data: Path) -> None:
    adata = ad.read_h5ad(shared_data / "multiome_a549/a549_atac_2641c_52761p_binary.h5ad")
    (report,) = ingested.report("a549")["others"]
    decoy = adata.var_names.str.startswith("hs37d5")
    known = adata.var_names.str.match(r"^(?:\d+|X|Y|MT|GL\d+\.\d)-\d+-\d+$")
    sums = np.asarray(adata.X.sum(0)).ravel()
    assert (known | decoy).all()
    assert report["genes"] == {"matched": int(known.sum()), "unknown": int(decoy.sum())}
    assert report["umis"] == {"matched": sums[known].sum(), "unknown": sums[decoy].sum()}
    mine = ingested.read("a549")[adata.obs_names]
    names = [
        f"hg19:{'chr' * (not name.startswith('GL'))}{place.replace('MT', 'M')}:{start}-{end}"
        for name in adata.var_names[known]
        for place, start, end in [name.rsplit("-", 2)]
    ]
    here = mine[:, names].X
    assert (here != adata[:, known].X).nnz == 0
    assert ingested.report("a549")["unpaired"] == {}


def test_values_without_counts_are_refused(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "pbmc_3chemistries/pbmc_3p1_3p2_5p_1200c_1767g_lognorm_only.h5ad"
    config = IngestConfig(atlas=str(tmp_path / "atlas"), sources=(SourceConfig(path=str(path)),), backend="local")
    with pytest.raises(CountsError, match="log"):
        ingest(config)
    assert not (tmp_path / "atlas" / "catalog").exists()
