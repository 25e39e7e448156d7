"""What tasks need in memory is what the configuration says, whatever the layout of the matrix and its size."""

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from anndata.io import write_elem
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from cellmill.errors import ResourceError
from cellmill.ingestion import IngestConfig, SourceConfig
from cellmill.ingestion.memory import chunks_of
from cellmill.ingestion.packing import ranges
from cellmill.ingestion.pipeline import plan
from cellmill.ingestion.sources import Place
from cellmill.ingestion.sources.arrow import ArrowSource
from tests.ingestion.cells import genes

MEGABYTES = 64
COLUMNS = 4000
CELLS, PER_CELL = 10_000, 1000

CHILD = """
import json, sys
from pathlib import Path
from cellmill.ingestion import IngestConfig, ingest

def run(source, atlas):
    settings = {"atlas": atlas, "sources": [{"path": source, "organism": "human"}], "backend": "local",
                "task_memory_mb": MEGABYTES, "duplicates": {"policy": "keep"}}
    return ingest(IngestConfig.model_validate(settings)).reports[0].cells_out

def kilobytes(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])

small, large, atlas = sys.argv[1:]
run(small, atlas + "/warm")
Path("/proc/self/clear_refs").write_text("5")
before = kilobytes("VmRSS")
cells = run(large, atlas + "/cold")
print(json.dumps({"cells": cells, "megabytes": (kilobytes("VmHWM") - before) / 1e3}))
""".replace("MEGABYTES", str(MEGABYTES))


def write(path: Path, layout: str, n_cells: int) -> Path:
    """Write counts of `PER_CELL` genes a cell, with values of eight bytes as some tools do."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        if layout == "dense":
            matrix = file.create_dataset("X", (n_cells, COLUMNS), np.float32, chunks=(64, COLUMNS), compression="lzf")
            for start in range(0, n_cells, 1000):
                stop = min(start + 1000, n_cells)
                block = rng.integers(1, 9, (stop - start, COLUMNS)) * (rng.random((stop - start, COLUMNS)) < 0.25)
                matrix[start:stop] = block
            matrix.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        else:
            lines, across = (n_cells, COLUMNS) if layout != "csc" else (COLUMNS, n_cells)
            each = n_cells * PER_CELL // lines
            group = file.create_group("X")
            kind = "csc_matrix" if layout == "csc" else "csr_matrix"
            group.attrs.update({"encoding-type": kind, "encoding-version": "0.1.0", "shape": (n_cells, COLUMNS)})
            group["indptr"] = np.arange(lines + 1) * each
            one_chunk = {"chunks": (lines * each,), "compression": "gzip", "compression_opts": 1}
            how = one_chunk if layout == "csr in one gzipped chunk" else {}
            indices = np.concatenate([np.sort(rng.permutation(across)[:each]) for _ in range(50)])
            values = rng.integers(1, 300, 99_991).astype(float)
            group.create_dataset("indices", data=np.resize(indices.astype(np.int64), lines * each), **how)
            group.create_dataset("data", data=np.resize(values, lines * each), **how)
        write_elem(file, "obs", pd.DataFrame({"donor": ["d"] * n_cells}, index=[f"c{i}" for i in range(n_cells)]))
        write_elem(file, "var", pd.DataFrame(index=genes(COLUMNS)))
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    return path


def measure(small: Path, large: Path, folder: Path) -> dict[str, float]:
    """Ingest a small source and then a large one in a process of its own; return its cells, and what memory it took."""
    # Arrow's allocator gives back what it freed after a while, which is longer where the machine is busy.
    environment = {**os.environ, "CELLMILL_CACHE": str(folder / "cache"), "MIMALLOC_PURGE_DELAY": "0"}
    command = [sys.executable, "-c", CHILD, str(small), str(large), str(folder / "atlas")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["csr", "csr in one gzipped chunk", "csc", "dense"])
def test_an_ingestion_stays_within_the_memory_it_was_given(tmp_path: Path, layout: str) -> None:
    small, large = write(tmp_path / "small.h5ad", layout, 400), write(tmp_path / "large.h5ad", layout, CELLS)
    size = CELLS * (COLUMNS * 4 if layout == "dense" else PER_CELL * 16)
    assert size > 2 * MEGABYTES * 1e6
    found = measure(small, large, tmp_path)
    assert found["cells"] == CELLS
    assert found["megabytes"] < MEGABYTES


def write_parquet(path: Path, n_cells: int) -> Path:
    """Write lists of gene ids and of counts, all in one group of rows."""
    rng = np.random.default_rng(0)
    drawn = np.concatenate([np.sort(rng.permutation(COLUMNS)[:PER_CELL]) for _ in range(50)])
    ids = pa.array(genes(COLUMNS)).take(pa.array(np.resize(drawn, n_cells * PER_CELL)))
    counts = pa.array(np.resize(rng.integers(1, 300, 99_991), n_cells * PER_CELL).astype(np.float32))
    ends = pa.array(np.arange(n_cells + 1, dtype=np.int32) * PER_CELL)
    lists = [pa.ListArray.from_arrays(ends, ids), pa.ListArray.from_arrays(ends, counts)]
    barcodes = pa.array([f"c{i}" for i in range(n_cells)])
    pq.write_table(pa.table([barcodes, *lists], ["barcode", "genes", "counts"]), path, row_group_size=n_cells)
    return path


@pytest.mark.slow
def test_a_parquet_file_of_one_group_of_rows_stays_within_the_memory_it_was_given(tmp_path: Path) -> None:
    small, large = write_parquet(tmp_path / "small.parquet", 400), write_parquet(tmp_path / "large.parquet", CELLS)
    assert pq.ParquetFile(large).metadata.num_row_groups == 1
    found = measure(small, large, tmp_path)
    assert found["cells"] == CELLS
    assert found["megabytes"] < MEGABYTES


def write_wide(path: Path, n_columns: int, n_cells: int, rows_in_group: int) -> Path:
    """Write a column for each gene, the same counts in another order in each."""
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 2**20, n_cells).astype(np.int32)
    names = genes(n_columns)
    schema = pa.schema([("barcode", pa.string()), *((name, pa.int32()) for name in names)])
    with pq.ParquetWriter(path, schema, use_dictionary=False) as writer:
        for start in range(0, n_cells, rows_in_group):
            stop = min(start + rows_in_group, n_cells)
            barcodes = pa.array([f"c{cell}" for cell in range(start, stop)])
            columns = [pa.array(np.roll(counts, shift)[start:stop]) for shift in range(n_columns)]
            writer.write_table(pa.table([barcodes, *columns], schema=schema))
    return path


def test_very_many_columns_of_long_groups_of_rows_are_refused_before_they_are_read(tmp_path: Path) -> None:
    long = write_wide(tmp_path / "long.parquet", 200, 40_000, 40_000)
    with pytest.raises(ResourceError, match=r"Reading 200 columns side by side takes 2\d MB at once") as refused:
        plan(described(long, tmp_path / "atlas"))
    assert "groups of fewer rows" in refused.value.fix
    short = write_wide(tmp_path / "short.parquet", 200, 4000, 1000)
    (planned,) = plan(described(short, tmp_path / "atlas"))
    assert planned.n_cells == 4000


@pytest.mark.parametrize(("n_columns", "n_cells", "rows_in_group"), [(40, 200_000, 200_000), (600, 2000, 500)])
def test_what_many_columns_take_is_known_before_they_are_read(
    tmp_path: Path, n_columns: int, n_cells: int, rows_in_group: int
) -> None:
    path = write_wide(tmp_path / "wide.parquet", n_columns, n_cells, rows_in_group)
    source = ArrowSource(Place(path), "wide", SourceConfig(path=str(path)))
    (expected,) = source.blocks("X").values()
    before = pa.total_allocated_bytes()
    counts = source.rows("X", 0, 8)
    taken = pa.total_allocated_bytes() - before
    source.close()
    assert counts.shape == (8, n_columns)
    # The library's own account of columns is not in its pool, nor are batches of as many rows as there may be.
    beside = n_columns * 4096 + 9 * pq.read_metadata(path).serialized_size + 2**20
    assert taken <= expected < 1.5 * taken + beside
    # A buffer of the usual megabyte for each column would not do.
    assert expected < 2**20 * n_columns / 3


@settings(max_examples=200)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=60), st.integers(1, 100))
def test_ranges_cover_everything_once_within_the_limit(weights: list[int], limit: int) -> None:
    found = list(ranges(np.cumsum(weights), limit))
    assert [i for start, stop in found for i in range(start, stop)] == list(range(len(weights)))
    for start, stop in found:
        assert sum(weights[start:stop]) <= limit or stop == start + 1
        # No range could have been longer.
        assert stop == len(weights) or sum(weights[start : stop + 1]) > limit


def test_cells_of_very_different_sizes_are_cut_into_chunks_of_equal_weight() -> None:
    lengths = np.concatenate([np.full(1000, 10), np.full(1000, 20_000), np.full(1000, 10)])
    starts = np.concatenate([[0], np.cumsum(lengths)])
    chunks = chunks_of(starts, 64)
    assert chunks[0][0] == 0
    assert chunks[-1][1] == 3000
    assert all(a[1] == b[0] for a, b in itertools.pairwise(chunks))
    assert max(starts[b] - starts[a] for a, b in chunks) * 8 <= 32e6


def described(path: Path, atlas: Path, **more: object) -> IngestConfig:
    source = {"path": str(path), "organism": "human", "obs": "all"}
    settings = {"atlas": str(atlas), "sources": [source], "backend": "local", "task_memory_mb": MEGABYTES} | more
    return IngestConfig.model_validate(settings)


def test_cells_with_so_much_text_that_a_shard_of_them_does_not_fit_are_refused_with_what_does(tmp_path: Path) -> None:
    n_cells, text = 3000, "x" * 500
    counts = sparse.random(n_cells, COLUMNS, 0.01, "csr", np.float32, np.random.default_rng(0), lambda n: np.ones(n))
    obs = pd.DataFrame({f"note{i}": [f"{text}{c}" for c in range(n_cells)] for i in range(20)})
    obs.index = [f"c{c}" for c in range(n_cells)]
    path = tmp_path / "wide.h5ad"
    ad.AnnData(counts, obs, pd.DataFrame(index=genes(COLUMNS))).write_h5ad(path)
    with pytest.raises(ResourceError, match=r"10,1\d\d bytes a cell") as refused:
        plan(described(path, tmp_path / "atlas"))
    most = int(re.findall(r"`shard_cells` to ([\d,]+)", refused.value.fix)[0].replace(",", ""))
    (planned,) = plan(described(path, tmp_path / "atlas", shard_cells=most))
    assert all((b - a) * 20 * len(text) < MEGABYTES * 1e6 / 4 for a, b in planned.chunks)


def test_text_is_looked_at_everywhere_and_chunks_are_as_small_as_where_it_is_longest(tmp_path: Path) -> None:
    n_cells, long = 4000, 3000
    counts = sparse.csr_matrix(np.ones((n_cells, 5), np.float32))
    # The first cells have none, as those of a sample that nobody described.
    notes = pd.Series(["x" * long if cell >= n_cells * 3 // 4 else "" for cell in range(n_cells)])
    obs = pd.DataFrame({"note": notes.to_numpy()}, index=[f"c{cell}" for cell in range(n_cells)])
    path = tmp_path / "sorted.h5ad"
    ad.AnnData(counts, obs, pd.DataFrame(index=genes(5))).write_h5ad(path)
    (planned,) = plan(described(path, tmp_path / "atlas"))
    budget = MEGABYTES * 1e6 / 2
    assert len(planned.chunks) > 1
    assert all(4 * notes[a:b].str.len().sum() <= budget for a, b in planned.chunks)
    # A shard has cells from everywhere: what they have on average has to fit, and here a quarter have text.
    obs["note"] = [f"{cell:0{8 * long}d}" if cell >= n_cells * 3 // 4 else "" for cell in range(n_cells)]
    ad.AnnData(counts, obs, pd.DataFrame(index=genes(5))).write_h5ad(path)
    with pytest.raises(ResourceError, match=r"have [56],\d\d\d bytes a cell"):
        plan(described(path, tmp_path / "atlas"))


@pytest.mark.parametrize(("zarr_format", "sharded"), [(2, False), (3, False), (3, True)])
def test_a_zarr_column_of_one_chunk_of_text_is_refused_before_it_is_read(
    tmp_path: Path, zarr_format: int, sharded: bool
) -> None:
    n_cells = 20_000
    path = tmp_path / "text.zarr"
    counts = sparse.csr_matrix(np.ones((n_cells, 5), np.float32))
    cells = pd.DataFrame(index=[f"c{i}" for i in range(n_cells)])
    root = zarr.open_group(path, mode="w", zarr_format=zarr_format)  # type: ignore[arg-type]
    root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    write_elem(root, "X", counts)
    write_elem(root, "obs", cells.assign(note="", donor="d1"))
    write_elem(root, "var", pd.DataFrame(index=genes(5)))
    notes = np.array([f"{i:0300d}" for i in range(n_cells)], object)
    attributes = dict(root["obs/note"].attrs)
    shards = notes.shape if sharded else None
    one = root.create_array("obs/note", shape=notes.shape, chunks=notes.shape, shards=shards, dtype=str, overwrite=True)
    one[:] = notes
    one.attrs.update(attributes)
    with pytest.raises(ResourceError, match=r"Decoding a chunk of 'note' takes 2\d MB at once") as refused:
        plan(described(path, tmp_path / "atlas"))
    assert refused.value.where.endswith("text.zarr: obs")
    sources = [{"path": str(path), "organism": "human", "where": "note != 'x'"}]
    with pytest.raises(ResourceError, match="a chunk of 'note'"):
        plan(described(path, tmp_path / "atlas", sources=sources))
    # It is not in the way of who keeps other columns, or has the memory.
    plan(described(path, tmp_path / "atlas", sources=[{**sources[0], "where": None, "obs": {"donor": "donor"}}]))
    most = int(re.findall(r"`task_memory_mb` to ([\d,]+)", refused.value.fix)[0].replace(",", ""))
    plan(described(path, tmp_path / "atlas", task_memory_mb=most + 1))


def test_a_zarr_array_of_one_large_chunk_is_refused_unless_a_task_has_memory_for_it(tmp_path: Path) -> None:
    n_cells = 5000
    path = tmp_path / "one.zarr"
    small = ad.AnnData(
        sparse.csr_matrix((n_cells, COLUMNS), dtype=np.float32),
        pd.DataFrame(index=[f"c{i}" for i in range(n_cells)]),
        pd.DataFrame(index=genes(COLUMNS)),
    )
    small.write_zarr(path)
    matrix = zarr.open_group(path, path="X", mode="r+")
    drawn = np.sort(np.random.default_rng(0).permutation(COLUMNS)[:PER_CELL])
    arrays = {"indices": np.tile(drawn, n_cells).astype(np.int32), "data": np.ones(n_cells * PER_CELL, np.float32)}
    for name, values in arrays.items():
        matrix.create_array(name, data=values, chunks=values.shape, overwrite=True)
    matrix.create_array("indptr", data=np.arange(n_cells + 1) * PER_CELL, overwrite=True)
    zarr.consolidate_metadata(path)
    with pytest.raises(ResourceError, match="takes 20 MB at once") as refused:
        plan(described(path, tmp_path / "atlas"))
    assert "Raise `task_memory_mb` to 80" in refused.value.fix
    plan(described(path, tmp_path / "atlas", task_memory_mb=80))


@pytest.mark.parametrize("layout", ["dense", "loom", "10x", "joined"])
def test_a_chunk_of_hdf5_that_holds_all_cells_is_refused_in_every_format(tmp_path: Path, layout: str) -> None:
    n_cells, path = 1500, tmp_path / "one.h5"
    cells, names = np.array([f"c{i}" for i in range(n_cells)], "S8"), np.array(genes(COLUMNS), "S16")
    more: dict[str, object] = {}
    with h5py.File(path, "w") as file:
        ones = np.ones((n_cells, COLUMNS), np.float32)
        if layout == "loom":
            file.create_dataset("matrix", data=ones.T, chunks=(COLUMNS, n_cells), compression="lzf")
            file["col_attrs/CellID"], file["row_attrs/Gene"] = cells, names
        elif layout == "10x":
            n = n_cells * COLUMNS
            file.create_dataset("matrix/data", data=ones.ravel(), chunks=(n,), compression=1, shuffle=True)
            file["matrix/indices"] = np.tile(np.arange(COLUMNS), n_cells)
            file["matrix/indptr"], file["matrix/shape"] = np.arange(n_cells + 1) * COLUMNS, [COLUMNS, n_cells]
            file["matrix/barcodes"], file["matrix/features/id"] = cells, names
        else:
            file.create_dataset("X", data=ones, chunks=ones.shape, compression="lzf")
            write_elem(file, "obs", pd.DataFrame(index=cells.astype(str)))
            write_elem(file, "var", pd.DataFrame(index=names.astype(str)))
    if layout == "joined":
        first = tmp_path / "first.h5ad"
        own = sparse.csr_matrix(np.ones((n_cells, 5), np.float32))
        obs, var = pd.DataFrame(index=cells.astype(str)), pd.DataFrame(index=genes(5))
        ad.AnnData(own, obs, var).write_h5ad(first)
        joined = {"path": str(first), "organism": "human", "join": [{"path": str(path), "modality": "protein"}]}
        more = {"sources": [joined]}
    settings = described(path, tmp_path / "atlas").model_dump() | more
    with pytest.raises(ResourceError, match="takes 24 MB at once"):
        plan(IngestConfig.model_validate(settings))
