"""Tables that a task holds as a whole are counted before they are read, and refused where they do not fit."""

from __future__ import annotations

import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellmill.errors import ResourceError
from cellmill.ingestion import IngestConfig
from cellmill.ingestion.memory import chunks_of
from cellmill.ingestion.packing import MOST_BYTES, ranges
from cellmill.ingestion.pipeline import plan
from cellmill.ingestion.sources.starts import EvenStarts
from tests.ingestion.cells import genes

LARGE = 500_000
"""Names of so many rows take more than a small task has for them, and next to nothing in a file."""


def names(group: h5py.Group, key: str, n: int, **attributes: object) -> h5py.Dataset:
    """Write n names of eight letters, as many as are asked for, of which a file holds few bytes."""
    made = group.create_dataset(key, data=np.full(n, b"AAAAAAAA"), chunks=(min(n, 1 << 16),), compression=1)
    made.attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0", **attributes})
    return made


def table(group: h5py.Group, n: int, columns: int = 0) -> None:
    group.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "_index"})
    group.attrs["column-order"] = [f"c{i}" for i in range(columns)]
    for name in ("_index", *(f"c{i}" for i in range(columns))):
        names(group, name, n)


def write(path: Path, n_cells: int, n_features: int, columns: int = 0) -> Path:
    """Write cells without counts."""
    with h5py.File(path, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        matrix = file.create_group("X")
        matrix.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
        matrix.attrs["shape"] = (n_cells, n_features)
        matrix["data"], matrix["indices"] = np.ones(1, np.float32), np.zeros(1, np.int32)
        starts = np.ones(n_cells + 1, np.int64)
        starts[0] = 0
        matrix.create_dataset("indptr", data=starts, chunks=(min(n_cells + 1, 1 << 16),), compression=1)
        table(file.create_group("obs"), n_cells)
        table(file.create_group("var"), n_features, columns)
    return path


def long_rows(folder: Path) -> dict[str, object]:
    return {"path": str(write(folder / "cells.h5ad", 10 * LARGE, 20))}


def long_var(folder: Path) -> dict[str, object]:
    return {"path": str(write(folder / "cells.h5ad", 20, LARGE))}


def wide_var(folder: Path) -> dict[str, object]:
    return {"path": str(write(folder / "cells.h5ad", 20, LARGE // 10, 20))}


def many_categories(folder: Path) -> dict[str, object]:
    path = write(folder / "cells.h5ad", 20, 20)
    with h5py.File(path, "r+") as file:
        del file["var/_index"]
        names_of_genes = file.create_dataset("var/_index", data=genes(20))
        names_of_genes.attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})
        note = file.create_group("obs/note")
        note.attrs.update({"encoding-type": "categorical", "encoding-version": "0.2.0", "ordered": False})
        note["codes"] = np.arange(20, dtype=np.int32)
        names(note, "categories", LARGE)[:] = np.arange(LARGE).astype("S8")
        file["obs"].attrs["column-order"] = ["note"]
    return {"path": str(path)}


def joined(folder: Path) -> dict[str, object]:
    first, second = (write(folder / f"{name}.h5ad", LARGE, 20) for name in ("cells", "proteins"))
    return {"path": str(first), "join": [{"path": str(second), "modality": "protein"}]}


def tenx(folder: Path) -> dict[str, object]:
    with h5py.File(folder / "cells.h5", "w") as file:
        matrix = file.create_group("matrix")
        matrix["data"], matrix["indices"], matrix["indptr"] = [1], [0], np.append(0, np.ones(LARGE, int))
        matrix["shape"] = [20, LARGE]
        names(matrix, "barcodes", LARGE)
        names(matrix, "features/id", 20)
    return {"path": str(folder / "cells.h5")}


Made = Callable[[Path], dict[str, object]]


def planned(source: dict[str, object], folder: Path, megabytes: int) -> None:
    own = {"organism": "human", "obs": "all", **source}
    settings = {"atlas": str(folder / "atlas"), "sources": [own], "backend": "local", "task_memory_mb": megabytes}
    plan(IngestConfig.model_validate(settings))


@pytest.mark.parametrize(
    ("made", "what"),
    [
        (long_rows, "Where the 5,000,000 rows begin"),
        (long_var, "The table of 500,000 rows and 1 columns"),
        (wide_var, "The table of 50,000 rows and 21 columns"),
        (many_categories, "The 500,000 categories of 'note'"),
        (joined, "Matching 500,000 barcodes"),
        (tenx, "The 500,000 values of /matrix/barcodes"),
    ],
)
def test_what_does_not_fit_is_refused_before_it_is_read(tmp_path: Path, made: Made, what: str) -> None:
    source = made(tmp_path)
    tracemalloc.start()
    try:
        with pytest.raises(ResourceError, match=r"must be held as a whole.*`task_memory_mb` is 64") as refused:
            planned(source, tmp_path, 64)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert refused.value.what.startswith(what)
    assert "cells.h5" in refused.value.where
    assert peak < 20e6


@pytest.mark.parametrize("made", [wide_var, many_categories])
def test_with_the_memory_that_the_message_names_it_is_read(tmp_path: Path, made: Made) -> None:
    source = made(tmp_path)
    with pytest.raises(ResourceError) as refused:
        planned(source, tmp_path, 64)
    (needed,) = re.findall(r"`task_memory_mb` to ([\d,]+)", refused.value.fix)
    planned(source, tmp_path, int(needed.replace(",", "")))


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3000)), min_size=1, max_size=6), st.data())
def test_starts_of_even_groups_are_those_of_an_array(groups: list[tuple[int, int]], data: st.DataObject) -> None:
    rows, each = zip(*groups, strict=True)
    array = np.concatenate([[0], np.cumsum(np.repeat(each, rows))]).astype(np.int64)
    starts = EvenStarts(rows, each)
    assert starts.size == array.size
    np.testing.assert_array_equal(np.asarray(starts), array)
    a, b = sorted(data.draw(st.tuples(*[st.integers(0, array.size - 1)] * 2)))
    np.testing.assert_array_equal(starts[a : b + 1], array[a : b + 1])
    assert (starts[a], starts[-1]) == (array[a], array[-1])
    # Chunks are cut as if the weight of every cell were there.
    text = data.draw(st.integers(0, 1_000_000))
    limit = 32_000_000
    weights = array[1:] * MOST_BYTES + np.arange(1, array.size) * max(4096, 4 * text, limit // (1 << 15))
    assert chunks_of(starts, 64, text) == chunks_of(array, 64, text) == tuple(ranges(weights, limit))
