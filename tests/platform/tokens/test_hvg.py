"""The out-of-core choice of genes against scanpy's."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cellmill.atlas import Atlas
from cellmill.errors import ConfigError
from cellmill.genes import Feature
from cellmill.tokens import highly_variable
from tests.platform.atlas import builders
from tests.platform.atlas.builders import add_shard

N_GENES = 600


def counts(n_cells: int, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    means = rng.gamma(0.6, 2.0, N_GENES)
    group = rng.random((n_cells, 1)) < 0.4
    boost = np.where(rng.random(N_GENES) < 0.15, 4.0, 1.0)
    rate = means * np.where(group, boost, 1.0) * rng.lognormal(0, 0.3, (n_cells, 1))
    return sparse.csr_matrix(rng.poisson(rate).astype(np.uint32))


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    made = Atlas.create(tmp_path_factory.mktemp("hvg") / "atlas")
    entries = [
        add_shard(made, name, counts(n, seed), obs={"donor": [f"d{seed}", f"e{seed}"] * (n // 2)})
        for name, n, seed in (("one", 300, 1), ("two", 200, 2))
    ]
    made.commit(entries)
    return made


def scanpy_choice(atlas: Atlas, batch_key: str | None, n_top: int) -> set[str]:
    scanpy: Any = pytest.importorskip("scanpy")
    pytest.importorskip("statsmodels")
    matrices = [counts(300, 1), counts(200, 2)]
    obs = pd.DataFrame({"donor": ["d1", "e1"] * 150 + ["d2", "e2"] * 100}, index=[str(i) for i in range(500)])
    var = pd.DataFrame(index=[f"ENSG{i:011d}" for i in range(N_GENES)])
    adata = ad.AnnData(sparse.vstack(matrices, format="csr").astype(np.float64), obs=obs, var=var)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scanpy.pp.filter_genes(adata, min_cells=1)
        scanpy.pp.normalize_total(adata, target_sum=1e4)
        scanpy.pp.log1p(adata)
        scanpy.pp.highly_variable_genes(adata, flavor="cell_ranger", n_top_genes=n_top, batch_key=batch_key)
    return set(adata.var_names[adata.var["highly_variable"]])


@pytest.mark.parametrize("batch_key", [None, "donor"])
def test_it_chooses_what_scanpy_chooses(atlas: Atlas, batch_key: str | None) -> None:
    selection = atlas.snapshot().select()
    tokens = highly_variable(selection, n_top=100, batch_key=batch_key)
    ids = atlas.vocabulary().ids
    mine = {ids[int(token) - 8] for token in tokens}
    assert len(mine) == 100
    # Sums in another order move a gene at the cut by its last bits.
    assert len(mine & scanpy_choice(atlas, batch_key, 100)) >= 99


def test_a_selection_is_what_is_looked_at(atlas: Atlas) -> None:
    snapshot = atlas.snapshot()
    all_cells = highly_variable(snapshot.select(), n_top=50)
    some = highly_variable(snapshot.select("donor == 'd1'"), n_top=50)
    assert set(all_cells.tolist()) != set(some.tolist())
    with pytest.raises(ConfigError, match="No cell"):
        highly_variable(snapshot.select("donor == 'nobody'"), n_top=50)


def test_cells_without_a_batch_are_one(tmp_path: Path) -> None:
    made = Atlas.create(tmp_path / "atlas")
    donors = [["a", None] * 60, [None, "b"] * 50]
    made.commit(
        [
            add_shard(made, name, counts(len(donor), seed), obs={"donor": donor})
            for seed, (name, donor) in enumerate(zip(("one", "two"), donors, strict=True))
        ]
    )
    named = [["a", "none"] * 60, ["none", "b"] * 50]
    same = Atlas.create(tmp_path / "same")
    same.commit(
        [
            add_shard(same, name, counts(len(donor), seed), obs={"donor": donor})
            for seed, (name, donor) in enumerate(zip(("one", "two"), named, strict=True))
        ]
    )
    found = [highly_variable(atlas.snapshot().select(), n_top=40, batch_key="donor") for atlas in (made, same)]
    assert found[0].tolist() == found[1].tolist()
    assert found[0].tolist() != highly_variable(made.snapshot().select(), n_top=40).tolist()


def test_genes_are_chosen_among_genes_as_if_nothing_else_had_been_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genes = counts(200, 3)
    alone = Atlas.create(tmp_path / "alone")
    alone.commit([add_shard(alone, "one", genes)])
    rng = np.random.default_rng(0)
    peaks = sparse.csr_matrix(rng.poisson(rng.gamma(0.2, 20.0, (200, 1)) * (rng.random((200, 300)) < 0.3)))
    proteins = sparse.csr_matrix(rng.poisson(rng.gamma(2.0, 300.0, (200, 40))))
    kinds = ["rna"] * N_GENES + ["atac"] * 300 + ["protein"] * 40
    ids = [f"ENSG{i:011d}" if kind == "rna" else f"{kind}{i}" for i, kind in enumerate(kinds)]
    features = [
        Feature(name, name, modality=kind, organism="human", release="test")
        for name, kind in zip(ids, kinds, strict=True)
    ]
    monkeypatch.setattr(builders, "make_features", lambda numbers: [features[i] for i in numbers])
    both = Atlas.create(tmp_path / "both")
    both.commit([add_shard(both, "one", sparse.hstack([genes, peaks, proteins], format="csr"))])
    selection = both.snapshot().select()
    found = highly_variable(selection, n_top=100)
    assert found.tolist() == highly_variable(alone.snapshot().select(), n_top=100).tolist()
    kept = [kinds[token - 8] for token in highly_variable(selection, n_top=20, modality="protein").tolist()]
    assert kept == ["protein"] * 20
    with pytest.raises(ConfigError, match="'lipid'"):
        highly_variable(selection, n_top=20, modality="lipid")
