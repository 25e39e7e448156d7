"""MuData files, against mudata."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cellmill.atlas import read
from cellmill.errors import SourceError
from cellmill.ingestion import ingest
from tests.ingestion.cells import config, genes
from tests.ingestion.sources.opened import format_of, opened, whole

mudata = pytest.importorskip("mudata", reason="mudata is not installed")

pytestmark = pytest.mark.filterwarnings("ignore")

PROTEINS = ["CD3_TotalSeqB", "CD4_TotalSeqB", "CD8a_TotalSeqB", "CD14_TotalSeqB"]


def part(names: list[str], cells: list[int], seed: int, **obs: Any) -> Any:
    rng = np.random.default_rng(seed)
    counts = rng.poisson(1.5, (len(cells), len(names))).astype(np.float32)
    counts[:, 0] += 1
    table = pd.DataFrame({"own": cells, **obs}, index=[f"c{i}" for i in cells])
    return ad.AnnData(sparse.csr_matrix(counts), table, pd.DataFrame(index=names))


def write_mu(path: Path) -> Any:
    """Write genes of 20 cells and proteins of 15, 13 of which are among these, in another order."""
    shuffled = np.random.default_rng(5).permutation(15)
    rna = part(genes(30), list(range(20)), 1, cell_type=["T", "B"] * 10)
    protein = part(PROTEINS, [int(i) + 7 for i in shuffled], 2, phase=[f"p{i}" for i in range(15)])
    rna.layers["counts"] = rna.X.copy()
    rna.X = rna.X * 0.5
    data = mudata.MuData({"prot": protein, "rna": rna})
    data.obs["donor"] = [f"d{i % 3}" for i in range(data.n_obs)]
    data.write(path)
    return mudata.read_h5mu(path)


def both(data: Any) -> list[str]:
    return [name for name in data["rna"].obs_names if name in data["prot"].obs_names]


def test_all_modalities_of_the_cells_that_have_them(tmp_path: Path) -> None:
    data = write_mu(tmp_path / "a.h5mu")
    assert format_of(tmp_path / "a.h5mu") == "h5mu"
    source: Any = opened(tmp_path / "a.h5mu")
    kept = both(data)
    assert source.obs([]).index.tolist() == kept
    assert (source.left_out, source.unpaired) == ({"not in prot": 7}, {"only in prot": 2})
    place = source.find_counts(1024)
    assert place == "layers/counts + X"
    wanted = np.hstack([data["rna"][kept].layers["counts"].toarray(), data["prot"][kept].X.toarray()])
    for step in (1, 5, 13):
        assert np.array_equal(whole(source, place, step), wanted)
    var = source.var(place)
    assert var.index.tolist() == [*genes(30), *PROTEINS]
    assert var["modality"].tolist() == ["rna"] * 30 + ["protein"] * 4
    source.close()


def test_columns_of_the_file_of_a_modality_and_of_its_sisters(tmp_path: Path) -> None:
    data = write_mu(tmp_path / "a.h5mu")
    source = opened(tmp_path / "a.h5mu", group="rna")
    columns = ["donor", "cell_type", "own", "rna:own", "prot:own", "phase"]
    assert set(columns) <= set(source.obs_columns())
    obs = source.obs(columns, 4, 17)
    names = data["rna"].obs_names[4:17]
    assert obs.index.tolist() == names.tolist()
    assert obs["donor"].tolist() == data.obs.loc[names, "donor"].tolist()
    assert obs["cell_type"].tolist() == data["rna"].obs.loc[names, "cell_type"].tolist()
    assert obs["own"].tolist() == obs["rna:own"].tolist() == data["rna"].obs.loc[names, "own"].tolist()
    wanted = data["prot"].obs.reindex(names)
    assert obs["prot:own"].isna().tolist() == wanted["own"].isna().tolist()
    assert obs["prot:own"].dropna().tolist() == wanted["own"].dropna().tolist()
    assert obs["phase"].dropna().tolist() == wanted["phase"].dropna().tolist()
    assert source.obs(["phase"], 0, 3)["phase"].isna().all()


@pytest.mark.parametrize("said", [{"group": "prot"}, {"modality": "protein"}])
def test_one_modality_alone(tmp_path: Path, said: dict[str, str]) -> None:
    data = write_mu(tmp_path / "a.h5mu")
    source = opened(tmp_path / "a.h5mu", **said)
    assert np.array_equal(whole(source, step=4), data["prot"].X.toarray())
    assert source.n_cells == 15
    assert source.digest != opened(tmp_path / "a.h5mu", group="rna").digest
    with pytest.raises(SourceError, match="no modality 'atac'"):
        opened(tmp_path / "a.h5mu", group="atac")
    with pytest.raises(SourceError, match="0 modalities are called like atac"):
        opened(tmp_path / "a.h5mu", modality="atac")


def test_what_is_ingested_equals_the_file_and_twice_changes_nothing(tmp_path: Path) -> None:
    data = write_mu(tmp_path / "a.h5mu")
    settings = config(tmp_path / "atlas", tmp_path / "a.h5mu", source={"obs": {"donor": "donor"}}, shard_cells=5)
    result = ingest(settings)
    (report,) = result.reports
    assert report.cells_out == 13
    assert not ingest(settings).changed
    kept = both(data)
    found = read(tmp_path / "atlas")
    order = [found.obs["barcode"].tolist().index(name) for name in kept]
    rna = data["rna"][kept].layers["counts"].toarray()
    assert np.array_equal(found[order, genes(30)].X.toarray(), rna)
    assert found.X.sum() == rna.sum() + data["prot"][kept].X.sum()
    assert found.obs["donor"].iloc[order].tolist() == data.obs.loc[kept, "donor"].tolist()


def cut_map(file: h5py.File) -> None:
    file["obsmap/rna"][3] = 1


def other_axis(file: h5py.File) -> None:
    file.attrs["axis"] = 1


def no_table(file: h5py.File) -> None:
    del file["mod/prot/obs"]


def strangers(file: h5py.File) -> None:
    del file["obsmap"]
    for key in ("mod/prot/obs/_index", "obs/_index"):
        names = file[key][:]
        file[key][:] = [b"x" + name if key.startswith("mod") else name for name in names]


def twins(file: h5py.File) -> None:
    del file["obsmap"]
    file["obs/_index"][1] = b"c0"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (cut_map, "obsmap/rna does not fit"),
        (other_axis, "share features"),
        (no_table, "mod/prot is no AnnData"),
        (strangers, "No cell is in both"),
        (twins, "Two cells of obs have one name"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, change: Callable[[h5py.File], None], what: str) -> None:
    write_mu(tmp_path / "a.h5mu")
    with h5py.File(tmp_path / "a.h5mu", "r+") as file:
        change(file)
    with pytest.raises(SourceError, match=what) as caught:
        opened(tmp_path / "a.h5mu").obs(["donor"])
    assert "a.h5mu" in caught.value.where


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    write_mu(tmp_path / "a.h5mu")
    data = (tmp_path / "a.h5mu").read_bytes()
    (tmp_path / "a.h5mu").write_bytes(data[:-300])
    with pytest.raises(SourceError, match="cut short"):
        opened(tmp_path / "a.h5mu")
