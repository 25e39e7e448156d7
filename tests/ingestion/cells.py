"""Small synthetic data sets with real gene ids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from cellmill.atlas import Atlas, read
from cellmill.genes import load_table
from cellmill.ingestion import IngestConfig, SourceConfig


def genes(n: int, start: int = 0) -> list[str]:
    return load_table("human").ids[start : start + n]


def make_adata(n_cells: int = 50, n_genes: int = 40, seed: int = 0, *, density: float = 0.4, start: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    dense = rng.integers(1, 300, (n_cells, n_genes)) * (rng.random((n_cells, n_genes)) < density)
    dense[:, 0] = 1
    return ad.AnnData(
        X=sparse.csr_matrix(dense.astype(np.float32)),
        obs=pd.DataFrame(
            {"donor": pd.Categorical([f"d{i % 3}" for i in range(n_cells)]), "age": np.arange(n_cells)},
            index=[f"cell{seed}-{i}" for i in range(n_cells)],
        ),
        var=pd.DataFrame(index=genes(n_genes, start)),
    )


def write(adata: Any, path: Path) -> Path:
    adata.write_h5ad(path)
    return path


def config(atlas: Path, *paths: Path, **settings: Any) -> IngestConfig:
    source = settings.pop("source", {})
    sources = tuple(SourceConfig(path=str(path), organism="human", licence="CC0", **source) for path in paths)
    return IngestConfig(atlas=str(atlas), sources=sources, **{"backend": "local", **settings})


def counts(atlas: Path | Atlas, where: str | None = None) -> pd.DataFrame:
    """Return counts of all cells by barcode and gene, without columns of zeros."""
    adata = read(atlas.url if isinstance(atlas, Atlas) else atlas, where=where)
    frame = pd.DataFrame(adata.X.toarray(), index=adata.obs["barcode"].tolist(), columns=list(adata.var_names))
    return tidy(frame)


def expected(adatas: Sequence[Any]) -> pd.DataFrame:
    parts = [pd.DataFrame(a.X.toarray(), index=a.obs_names.tolist(), columns=list(a.var_names)) for a in adatas]
    return tidy(pd.concat([part.T.groupby(level=0).sum().T for part in parts]).fillna(0))


def tidy(frame: pd.DataFrame) -> pd.DataFrame:
    frame = frame.loc[:, (frame != 0).any()]
    return frame.sort_index().sort_index(axis=1).astype(np.float64)
