"""A cell of very many stored values, which take next to nothing in a file, is refused before it is decoded."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

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

from cellmill.errors import ResourceError
from cellmill.ingestion import IngestConfig, SourceConfig, ingest
from cellmill.ingestion.sources import Place, registry
from cellmill.ingestion.sources.arrow import ArrowSource
from cellmill.ingestion.sources.parquet_lengths import list_lengths
from tests.children import forkserver
from tests.ingestion.cells import genes
from tests.ingestion.sources.test_hostile import memory_mb

MEGABYTES, MORE_MB = 64, 100
CELLS, GENES = 30, 20
LONG = 6_000_000
"""Values of one cell: 240 MB while they are raw."""


def lengths(long: int) -> np.ndarray[Any, Any]:
    found = np.full(CELLS, GENES)
    found[7] = long
    return found


def table(long: int) -> pa.Table:
    ends = pa.array(np.append(0, np.cumsum(lengths(long))), pa.int32())
    n = ends[-1].as_py()
    named = pa.DictionaryArray.from_arrays(np.resize(np.arange(GENES, dtype=np.int32), n), pa.array(genes(GENES)))
    ids, counts = pa.ListArray.from_arrays(ends, named), pa.ListArray.from_arrays(ends, np.ones(n, np.int32))
    return pa.table([[f"c{i}" for i in range(CELLS)], ids, counts], ["barcode", "genes", "counts"])


def parquet(folder: Path, long: int) -> Path:
    pq.write_table(table(long), folder / "cells.parquet", compression="zstd", store_schema=False)
    return folder / "cells.parquet"


def arrow(folder: Path, long: int) -> Path:
    one = table(long)
    with pa.ipc.new_file(
        folder / "cells.arrow", one.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")
    ) as sink:
        sink.write_table(one)
    return folder / "cells.arrow"


def matrix(group: Any, lines: np.ndarray[Any, Any], **how: Any) -> None:
    n = int(lines.sum())
    values = {"data": np.ones(n, np.float32), "indices": np.resize(np.arange(GENES, dtype=np.int32), n)}
    for name, array in values.items():
        make = group.create_dataset if isinstance(group, h5py.Group) else group.create_array
        make(name, data=array, chunks=(min(n, 1 << 18),), **how)
    starts = np.append(0, np.cumsum(lines))
    if isinstance(group, h5py.Group):
        group["indptr"] = starts
    else:
        group.create_array("indptr", data=starts)


def anndata_parts(root: Any) -> None:
    write_elem(root, "obs", pd.DataFrame(index=[f"c{i}" for i in range(CELLS)]))
    write_elem(root, "var", pd.DataFrame(index=genes(GENES)))
    root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})


def h5ad(folder: Path, long: int, name: str = "cells.h5ad") -> Path:
    with h5py.File(folder / name, "w") as file:
        group = file.create_group("X")
        matrix(group, lengths(long), compression=1)
        group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": (CELLS, GENES)})
        anndata_parts(file)
    return folder / name


def by_columns(folder: Path, long: int) -> Path:
    with h5py.File(folder / "cells.h5ad", "w") as file:
        group = file.create_group("X")
        rows = np.concatenate([np.arange(CELLS), np.full(long // GENES, 7)]).astype(np.int32)
        group.create_dataset("indices", data=np.tile(rows, GENES), chunks=(1 << 18,), compression=1)
        group.create_dataset("data", data=np.ones(rows.size * GENES, np.float32), chunks=(1 << 18,), compression=1)
        group["indptr"] = np.arange(GENES + 1) * rows.size
        group.attrs.update({"encoding-type": "csc_matrix", "encoding-version": "0.1.0", "shape": (CELLS, GENES)})
        anndata_parts(file)
    return folder / "cells.h5ad"


def zarr_folder(folder: Path, long: int) -> Path:
    root = zarr.open_group(folder / "cells.zarr", mode="w", zarr_format=3)
    group = root.create_group("X")
    matrix(group, lengths(long))
    group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": (CELLS, GENES)})
    anndata_parts(root)
    return folder / "cells.zarr"


def tenx(folder: Path, long: int) -> Path:
    with h5py.File(folder / "cells.h5", "w") as file:
        group = file.create_group("matrix")
        matrix(group, lengths(long), compression=1)
        group["shape"] = [GENES, CELLS]
        group["barcodes"] = np.array([f"c{i}" for i in range(CELLS)], "S8")
        file["matrix/features/id"] = np.array(genes(GENES), "S16")
    return folder / "cells.h5"


def text(folder: Path, long: int) -> Path:
    """Write entries in the order of genes, so that they have to be sorted by cells."""
    here, long = folder / "mtx", long // 4
    here.mkdir()
    # A heading that says more genes than are used may say so many entries.
    n_genes = long // CELLS + GENES
    (here / "features.tsv").write_text(
        "".join(f"{name}\n" for name in [*genes(GENES), *map(str, range(GENES, n_genes))])
    )
    (here / "barcodes.tsv").write_text("".join(f"c{i}\n" for i in range(CELLS)))
    more = "2 8 1\n" * (long - GENES * CELLS)
    own = "".join(f"{gene + 1} {cell + 1} 1\n" for gene in range(GENES) for cell in range(CELLS))
    heading = f"%%MatrixMarket matrix coordinate integer general\n{n_genes} {CELLS} {long}\n"
    (here / "matrix.mtx.gz").write_bytes(gzip.compress((heading + own + more).encode(), 1))
    return here


def joined(folder: Path, long: int) -> Path:
    return h5ad(folder, long, "proteins.h5ad")


Made = Callable[[Path, int], Path]


def configured(path: Path, folder: Path, megabytes: int) -> IngestConfig:
    own = SourceConfig(path=str(path), organism="human")
    if path.name == "proteins.h5ad":
        first = h5ad(folder, GENES, "rna.h5ad")
        joins = [{"path": str(path), "modality": "protein"}]
        own = SourceConfig.model_validate({"path": str(first), "organism": "human", "join": joins})
    return IngestConfig(atlas=str(folder / "atlas"), sources=(own,), backend="local", task_memory_mb=megabytes)


def attempt(path: Path, folder: Path, sink: Any) -> None:
    registry.formats()
    config = configured(path, folder, MEGABYTES)
    Path("/proc/self/clear_refs").write_text("5")
    before = memory_mb("VmRSS")
    try:
        ingest(config)
        sink.send(("nothing", "", "", memory_mb("VmHWM") - before))
    except ResourceError as error:
        sink.send((error.what, error.where, error.fix, memory_mb("VmHWM") - before))
    except Exception as error:  # noqa: BLE001 - whatever it is, the test shall say
        sink.send((repr(error), "", "", memory_mb("VmHWM") - before))


@pytest.mark.parametrize("make", [parquet, arrow, h5ad, by_columns, zarr_folder, tenx, text, joined])
def test_it_is_refused_within_the_memory_of_a_task(tmp_path: Path, make: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELLMILL_CACHE", str(tmp_path / "cache"))
    path = make(tmp_path, LONG)
    context = forkserver()
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=attempt, args=(path, tmp_path, theirs))
    child.start()
    theirs.close()
    assert ours.poll(120), "it does not end"
    what, where, fix, more = ours.recv()
    child.join()
    assert what.startswith("A batch of rows" if make is arrow else "One cell has"), what
    assert path.name in where
    assert "`task_memory_mb` to" in fix
    assert more < MORE_MB


@pytest.mark.parametrize("make", [parquet, h5ad, by_columns])
def test_with_the_memory_that_the_message_names_it_is_read(
    tmp_path: Path, make: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CELLMILL_CACHE", str(tmp_path / "cache"))
    path = make(tmp_path, 500_000)
    with pytest.raises(ResourceError) as refused:
        ingest(configured(path, tmp_path, MEGABYTES))
    (needed,) = re.findall(r"`task_memory_mb` to ([\d,]+)", refused.value.fix)
    done = ingest(configured(path, tmp_path, int(needed.replace(",", ""))))
    assert done.reports[0].cells_out == CELLS


@settings(max_examples=60)
@given(
    st.lists(st.lists(st.one_of(st.none(), st.integers(0, 300)), min_size=1, max_size=30), min_size=1, max_size=3),
    st.sampled_from(["snappy", "gzip", "brotli", "zstd", "lz4", "none"]),
    st.sampled_from(["1.0", "2.0"]),
    st.booleans(),
    st.sampled_from([64, 1 << 20]),
)
def test_lengths_of_lists_are_those_that_arrow_finds(
    groups: list[list[int | None]],
    compression: str,
    version: str,
    dictionary: bool,
    page: int,
) -> None:
    lists = [[None if n is None else [f"g{i}" for i in range(n)] for n in group] for group in groups]
    made = [pa.array(group, pa.list_(pa.string())) for group in lists]
    stored = pa.BufferOutputStream()
    with pq.ParquetWriter(
        stored,
        pa.schema([("genes", pa.list_(pa.string()))]),
        compression=compression,
        data_page_version=version,
        use_dictionary=dictionary,
        data_page_size=page,
        write_batch_size=16,
    ) as sink:
        for group in made:
            sink.write_table(pa.table([group], ["genes"]))
    file = pa.BufferReader(stored.getvalue())
    found = list(list_lengths(pq.read_metadata(file), "genes", file, "here"))
    assert [lengths.tolist() for lengths in found] == [[max(n or 0, 1) for n in group] for group in groups]


def test_uneven_lists_are_read_few_rows_at_a_time(tmp_path: Path) -> None:
    """Of a group of rows whose average is low, those that are long and neighbours are never read together."""
    n, long, many = 4000, 60_000, 8
    each = np.ones(n, np.int64)
    each[1000 : 1000 + many] = long
    ends = pa.array(np.append(0, np.cumsum(each)), pa.int32())
    ids = pa.array(np.resize(np.arange(GENES, dtype=np.int32), each.sum())).cast(pa.string())
    lists = [pa.ListArray.from_arrays(ends, ids), pa.ListArray.from_arrays(ends, np.ones(each.sum(), np.int32))]
    path = tmp_path / "cells.parquet"
    pq.write_table(pa.table(lists, ["genes", "counts"]), path, row_group_size=n)
    source = ArrowSource(Place(path), "cells", SourceConfig(path=str(path)))
    starts = source.starts("X")
    np.testing.assert_array_equal(np.diff(np.asarray(starts)), each)
    source.rows("X", 0, 4)
    batches = list(source._layout._batches(("genes", "counts"), 0, n))  # type: ignore[union-attr]
    source.close()
    assert sum(batch.num_rows for batch in batches) == n
    assert max(pa.compute.sum(pa.compute.list_value_length(batch["genes"])).as_py() for batch in batches) <= 1 << 17
