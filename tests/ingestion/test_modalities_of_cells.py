"""Cells of several modalities: judged, selected and compared by their genes, stored and read with all features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cellmill.atlas import Atlas, read
from cellmill.atlas.compacting import compact
from cellmill.atlas.exporting import export_arrow
from cellmill.errors import ConfigError
from cellmill.ingestion import IngestConfig, SourceConfig, ingest
from cellmill.ingestion.linking import link
from cellmill.stream import Stream, StreamConfig
from cellmill.tokens import TokenConfig, Tokeniser
from tests.ingestion.cells import genes, write

N_GENES, N_PEAKS = 50, 400
_COLUMNS = ["barcode", "n_genes", "n_counts", "n_features"]


def multiome(n: int = 40, seed: int = 0, n_genes: int = N_GENES) -> Any:
    """Return cells of few genes and many peaks; those in the beginning have fewest genes."""
    rng = np.random.default_rng(seed)
    expressed = rng.random((n, n_genes)) < np.linspace(0.05, 0.5, n)[:, None]
    expressed[:, :1] = True
    dense = np.hstack([rng.integers(1, 9, (n, n_genes)) * expressed, rng.integers(0, 3, (n, N_PEAKS))])
    var = pd.DataFrame(
        {"feature_types": ["Gene Expression"] * n_genes + ["Peaks"] * N_PEAKS},
        index=[*genes(n_genes), *(f"chr1:{i * 1000}-{i * 1000 + 500}" for i in range(N_PEAKS))],
    )
    obs = pd.DataFrame(index=[f"c{seed}-{i}" for i in range(n)])
    return ad.AnnData(sparse.csr_matrix(dense.astype(np.float32)), obs, var)


def config(atlas: Path, *paths: Path, **settings: Any) -> IngestConfig:
    sources = tuple(SourceConfig(path=str(path), organism="human", assembly="hg38") for path in paths)
    return IngestConfig(atlas=str(atlas), sources=sources, backend="local", **settings)


def table(atlas: Path, where: str | None = None) -> pd.DataFrame:
    found: pd.DataFrame = Atlas.open(atlas).snapshot().cells(_COLUMNS, where).to_pandas().set_index("barcode")
    return found


def test_a_selection_by_genes_takes_the_cells_that_quality_would(tmp_path: Path) -> None:
    adata = multiome()
    path = write(adata, tmp_path / "a.h5ad")
    ingest(config(tmp_path / "all", path, quality={"min_genes": 0, "min_counts": 0}))
    limits = {"min_genes": 8, "max_genes": 20, "min_counts": 30, "max_counts": 99}
    (report,) = ingest(config(tmp_path / "some", path, quality=limits)).reports
    assert 0 < report.cells_out < 40
    where = "n_genes >= 8 and n_genes <= 20 and n_counts >= 30 and n_counts <= 99"
    assert set(table(tmp_path / "all", where).index) == set(table(tmp_path / "some").index)
    dense = adata.X.toarray()
    found = table(tmp_path / "all").loc[adata.obs_names]
    assert found["n_genes"].tolist() == (dense[:, :N_GENES] > 0).sum(1).tolist()
    assert found["n_counts"].tolist() == dense[:, :N_GENES].sum(1).tolist()
    assert found["n_features"].tolist() == (dense > 0).sum(1).tolist()


def test_without_genes_all_features_are_meant(tmp_path: Path) -> None:
    adata = multiome(n_genes=0)
    ingest(config(tmp_path / "atlas", write(adata, tmp_path / "a.h5ad")))
    found = table(tmp_path / "atlas").loc[adata.obs_names]
    assert found["n_genes"].tolist() == found["n_features"].tolist() == (adata.X > 0).sum(1).A1.tolist()
    assert found["n_counts"].tolist() == adata.X.sum(1).A1.tolist()


def test_cells_of_few_genes_and_many_peaks_are_nearly_empty(tmp_path: Path) -> None:
    first = multiome()
    second = first.copy()
    second.obs_names = [*first.obs_names[:5], *(f"other-{i}" for i in range(35))]
    paths = write(first, tmp_path / "a.h5ad"), write(second, tmp_path / "b.h5ad")
    reports = ingest(config(tmp_path / "atlas", *paths)).reports
    assert [report.dropped for report in reports] == [{}, {"duplicate of a cell in this ingestion": 5}]
    # With counts alone to go by, those are equal that have as many genes as that.
    limit = int(np.median(table(tmp_path / "atlas")["n_genes"]))
    reports = ingest(config(tmp_path / "other", *paths, duplicates={"min_genes": limit})).reports
    n_genes = (first.X[:, :N_GENES] > 0).sum(1).A1
    equal = (n_genes >= limit) | (np.arange(40) < 5)
    assert reports[1].dropped == {"duplicate of a cell in this ingestion": equal.sum()}


@pytest.fixture
def layouts(tmp_path: Path) -> tuple[Any, dict[str, Path]]:
    """Two data sets in every layout that shards have."""
    both = [multiome(seed=seed) for seed in range(2)]
    folders = {name: tmp_path / name for name in ("zarr", "linked", "arrow", "compacted")}
    stores = [tmp_path / f"{name}.zarr" for name in "ab"]
    for adata, store in zip(both, stores, strict=True):
        adata.write_zarr(store)
    for name in ("zarr", "compacted"):
        ingest(config(folders[name], *stores, shard_cells=25))
    link(config(folders["linked"], *stores, shard_cells=25))
    export_arrow(Atlas.open(folders["zarr"]).snapshot(), folders["arrow"])
    assert compact(Atlas.open(folders["compacted"]), shard_cells=33).changed
    return ad.concat(both), folders


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_layout_holds_all_features_and_is_streamed_with_room_for_them(layouts: Any) -> None:
    adata, folders = layouts
    wanted = pd.DataFrame(adata.X.toarray(), index=adata.obs_names).set_axis(
        [name if name.startswith("ENSG") else f"hg38:{name}" for name in adata.var_names], axis=1
    )
    longest = int((wanted > 0).sum(axis=1).max())
    for name, folder in folders.items():
        atlas = Atlas.open(folder)
        assert atlas.verify().sound
        found = read(str(folder))
        frame = pd.DataFrame(found.X.toarray(), found.obs["barcode"].tolist(), list(found.var_names))
        pd.testing.assert_frame_equal(frame.loc[wanted.index, list(wanted)], wanted, check_dtype=False, obj=name)
        tokeniser = Tokeniser(TokenConfig(max_genes=1000))
        some = atlas.snapshot().select("n_genes >= 1")
        stream = Stream(some, tokeniser, StreamConfig(batch_size=8))
        stream.check_capacity(longest + 1)
        with pytest.raises(ConfigError, match=f"can have {longest + 1:,} tokens"):
            stream.check_capacity(longest)
        assert max(int(batch.lengths.max()) for batch in stream.epoch(0)) == longest + 1
