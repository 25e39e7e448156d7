"""Synthetic h5ad files of any size, written in blocks: the pool of `benchmarks.synthetic`, drawn again and again.

A cell that is drawn again has another count in its first gene, so that no two cells are equal.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from anndata.io import write_elem
from benchmarks.synthetic import GENES, POOL, counts

from cellmill.genes import load_table

_CELLS_AT_ONCE = 8192
_DONORS, _TYPES = 40, 30


def write_h5ad(path: Path, n_cells: int, compression: str | None) -> int:
    """Write an h5ad as anndata would (float32, CSR), unless it is there; return its number of stored values."""
    if path.exists():
        with h5py.File(path) as file:
            return int(file["X/data"].shape[0])
    pool = counts(min(n_cells, POOL))
    rng = np.random.default_rng(1)
    rows = rng.integers(0, pool.shape[0], n_cells) if n_cells > POOL else np.arange(n_cells)
    again = pd.Series(rows).groupby(rows).cumcount().to_numpy()
    indptr = np.concatenate([[0], np.cumsum(np.diff(pool.indptr)[rows])])
    partial = path.with_suffix(".partial")
    with h5py.File(partial, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        matrix = file.create_group("X")
        matrix.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": (n_cells, GENES)})
        matrix["indptr"] = indptr
        arrays = {
            name: matrix.create_dataset(name, (indptr[-1],), dtype, chunks=True, compression=compression)
            for name, dtype in (("indices", np.int32), ("data", np.float32))
        }
        for start in range(0, n_cells, _CELLS_AT_ONCE):
            block = pool[rows[start : start + _CELLS_AT_ONCE]]
            block.data[block.indptr[:-1]] += again[start : start + _CELLS_AT_ONCE].astype(block.dtype)
            place = slice(indptr[start], indptr[start] + block.nnz)
            arrays["indices"][place], arrays["data"][place] = block.indices, block.data
        obs = {
            "donor": pd.Categorical.from_codes(rng.integers(0, _DONORS, n_cells), [f"d{i}" for i in range(_DONORS)]),
            "cell_type": pd.Categorical.from_codes(rng.integers(0, _TYPES, n_cells), [f"t{i}" for i in range(_TYPES)]),
            "n_umis": np.arange(n_cells),
        }
        write_elem(file, "obs", pd.DataFrame(obs, index=[f"cell-{i}" for i in range(n_cells)]))
        write_elem(file, "var", pd.DataFrame(index=load_table("human").ids[:GENES]))
    partial.rename(path)
    return int(indptr[-1])
