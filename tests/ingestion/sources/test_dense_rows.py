"""Dense matrices in tall chunks are the same by rows, and each chunk is decoded once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr
from anndata.io import write_elem
from hypothesis import given
from hypothesis import strategies as st

from cellmill.errors import CountsError, SourceError
from cellmill.ingestion import IngestConfig, SourceConfig
from cellmill.ingestion.pipeline import plan
from cellmill.ingestion.sources import Place, registry
from cellmill.ingestion.sources.dense_rows import by_rows
from tests.ingestion.cells import make_adata

CELLS, FEATURES = 700, 2000


@given(data=st.data())
def test_rows_are_those_of_the_matrix_and_chunks_are_read_once(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    shape = data.draw(st.tuples(st.integers(1, 30), st.integers(1, 30)))
    chunks = tuple(data.draw(st.integers(1, n)) for n in shape)
    cells = data.draw(st.sampled_from([0, 1]))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    dense = (rng.integers(1, 9, shape) * (rng.random(shape) < data.draw(st.floats(0, 1)))).astype(np.float32)
    taken: list[Any] = []

    class Array:
        def __init__(self) -> None:
            self.shape, self.chunks, self.dtype = shape, chunks, dense.dtype

    def read(part: Any) -> np.ndarray[Any, Any]:
        found: np.ndarray[Any, Any] = dense[part]
        taken.append(found.size)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CELLMILL_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr("cellmill.ingestion.sources.dense_rows._VALUES_AT_ONCE", data.draw(st.integers(1, 200)))
        patch.setattr("cellmill.ingestion.sources.stored_rows.ENTRIES_AT_ONCE", data.draw(st.integers(1, 50)))
        rows = by_rows(Array(), cells, read, "m", "m")
    wanted = dense if cells == 0 else dense.T
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, wanted.shape[0])] * 2)))
    np.testing.assert_array_equal(rows.rows(start, stop).toarray(), wanted[start:stop])
    np.testing.assert_array_equal(np.diff(rows.starts), np.count_nonzero(wanted, axis=1))
    rows.close()
    # Beside that, a few are looked at to say how much there is.
    assert sum(taken) <= dense.size + 1 + 3 * chunks[0] * chunks[1]


def written(folder: Path, kind: str, counts: np.ndarray[Any, Any]) -> Path:
    path, adata = folder / f"cells.{kind}", make_adata(CELLS, FEATURES)
    if kind == "loom":
        with h5py.File(path, "w") as file:
            file.create_dataset("matrix", data=counts.T, chunks=(100, CELLS), compression="gzip", compression_opts=1)
            file["row_attrs/Gene"] = adata.var_names.to_numpy().astype("S")
            file["col_attrs/CellID"] = adata.obs_names.to_numpy().astype("S")
        return path
    root = h5py.File(path, "w") if kind == "h5ad" else zarr.open_group(path, mode="w", zarr_format=3)
    how: dict[str, Any] = {"compression": "gzip", "compression_opts": 1} if kind == "h5ad" else {}
    make: Any = root.create_dataset if kind == "h5ad" else root.create_array
    made = make("X", data=counts, chunks=(CELLS, 100), **how)
    made.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    write_elem(root, "obs", adata.obs)
    write_elem(root, "var", adata.var)
    root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    if isinstance(root, h5py.File):
        root.close()
    return path


@pytest.mark.parametrize("kind", ["h5ad", "zarr", "loom"])
def test_every_format_reads_tall_chunks_by_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setenv("CELLMILL_CACHE", str(tmp_path / "cache"))
    counts = make_adata(CELLS, FEATURES).X.toarray()
    source = registry.open_source(
        Place(written(tmp_path, kind, counts)), "cells", SourceConfig(path=str(tmp_path / f"cells.{kind}"))
    )
    np.testing.assert_array_equal(np.diff(np.asarray(source.starts("X"))), np.count_nonzero(counts, axis=1))
    for start, stop in ((0, 3), (0, CELLS), (CELLS - 5, CELLS)):
        np.testing.assert_array_equal(source.rows("X", start, stop).toarray(), counts[start:stop])
    source.close()
    assert len(list((tmp_path / "cache/prepared").glob("*/header.json"))) == 1


def test_what_is_no_count_is_found_and_damage_is_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELLMILL_CACHE", str(tmp_path / "cache"))
    counts = make_adata(CELLS, FEATURES).X.toarray()
    counts[CELLS - 1, FEATURES - 1] = np.nan
    path = written(tmp_path, "h5ad", counts)
    source = {"path": str(path), "organism": "human"}
    config = {"atlas": str(tmp_path / "atlas"), "sources": [source], "backend": "local"}
    with pytest.raises(CountsError, match="NaN"):
        plan(IngestConfig.model_validate(config))
    with h5py.File(path, "r") as file:
        chunk = file["X"].id.get_chunk_info(12)
    with path.open("r+b") as raw:
        raw.seek(chunk.byte_offset + 20)
        raw.write(b"\xff" * 40)
    with pytest.raises(SourceError, match="cannot be read"):
        plan(IngestConfig.model_validate(config))
