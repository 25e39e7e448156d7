"""Bodies of every form give the same cells; what is wrong with one is said."""

from __future__ import annotations

import json
from io import BytesIO
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from scipy import sparse

from cellmill.errors import CellmillError, CountsError, SourceError
from cellmill.serving.bodies.h5ad import SYMBOL_COLUMNS, read_h5ad
from cellmill.serving.bodies.kinds import kind_of
from cellmill.serving.bodies.read import read_body
from cellmill.serving.cells import Cells
from cellmill.serving.config import LimitsConfig
from cellmill.serving.errors import InvalidBodyError, MediaTypeError, TooLargeError
from tests.serving.samples import GENES, adata, h5ad

LIMITS = LimitsConfig(max_cells=100, max_genes=1000, max_values=10_000)
CELLS = adata()
DENSE = np.asarray(CELLS.X.todense()).astype(int)
IDS = list(CELLS.obs_names)


def dense_of(cells: Cells) -> np.ndarray:
    matrix = sparse.csr_matrix((cells.data, cells.indices, cells.indptr), shape=(cells.n_cells, len(cells.genes)))
    return np.asarray(matrix.todense())


def as_json(**document: Any) -> bytes:
    return json.dumps(document).encode()


def as_arrow(genes: list[list[str]], values: list[list[float]], ids: list[str], *, dictionary: bool) -> bytes:
    flat = pa.array([name for row in genes for name in row])
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in genes])]).astype(np.int32)
    if dictionary:
        flat = pa.DictionaryArray.from_arrays(pa.array([GENES.index(name.as_py()) for name in flat], pa.int32()), GENES)
    numbers = pa.array([value for row in values for value in row])
    table = pa.table(
        {
            "id": ids,
            "genes": pa.ListArray.from_arrays(offsets, flat),
            "counts": pa.ListArray.from_arrays(offsets, numbers),
        }
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    return bytes(sink.getvalue())


def sparse_rows() -> tuple[list[list[str]], list[list[float]]]:
    rows = [np.flatnonzero(row) for row in DENSE]
    return [[GENES[i] for i in row] for row in rows], [
        DENSE[n, row].astype(float).tolist() for n, row in enumerate(rows)
    ]


def forms() -> dict[str, tuple[Any, bytes]]:
    csr = sparse.csr_matrix(DENSE)
    names, values = sparse_rows()
    variants = {
        "csr": CELLS,
        "csc": ad.AnnData(sparse.csc_matrix(CELLS.X), obs=CELLS.obs, var=CELLS.var),
        "dense": ad.AnnData(DENSE.astype(np.int32), obs=CELLS.obs, var=CELLS.var),
    }
    return {
        **{name: ("h5ad", h5ad(value)) for name, value in variants.items()},
        "rows": (
            "json",
            as_json(genes=GENES, cells=[{"id": i, "counts": row.tolist()} for i, row in zip(IDS, DENSE, strict=True)]),
        ),
        "names": (
            "json",
            as_json(
                genes=GENES,
                cells=[
                    {"id": i, "counts": dict(zip(n, v, strict=True))}
                    for i, n, v in zip(IDS, names, values, strict=True)
                ],
            ),
        ),
        "matrix": (
            "json",
            as_json(
                genes=GENES,
                ids=IDS,
                matrix={"data": csr.data.tolist(), "indices": csr.indices.tolist(), "indptr": csr.indptr.tolist()},
            ),
        ),
        "arrow": ("arrow", as_arrow(names, values, IDS, dictionary=False)),
        "arrow-dictionary": ("arrow", as_arrow(names, values, IDS, dictionary=True)),
    }


@pytest.mark.parametrize("form", list(forms()))
def test_all_forms_give_the_same_cells(form: str) -> None:
    kind, body = forms()[form]
    cells = read_body(kind, body, LIMITS)
    assert list(cells.ids) == IDS
    columns = [cells.genes.index(name) for name in GENES]
    assert np.array_equal(dense_of(cells)[:, columns], DENSE)
    again = Cells.from_bytes(cells.to_bytes())
    assert (again.ids, again.genes, again.counts_from) == (cells.ids, cells.genes, cells.counts_from)
    assert np.array_equal(dense_of(again), dense_of(cells))
    assert np.array_equal(np.asarray(again.to_anndata().X.todense()), dense_of(cells))


def test_counts_are_found_where_offline_prediction_finds_them() -> None:
    from cellmill.training import query

    assert SYMBOL_COLUMNS == query.SYMBOL_COLUMNS
    logged = ad.AnnData(np.log1p(DENSE), obs=CELLS.obs, var=CELLS.var)
    cases = {"X": CELLS.copy()}
    cases["raw.X"] = logged.copy()
    cases["raw.X"].raw = CELLS
    cases["layers/counts"] = logged.copy()
    cases["layers/counts"].layers["counts"] = CELLS.X
    cases["layers/umis"] = logged.copy()
    cases["layers/umis"].layers["umis"] = CELLS.X
    for place, cells in cases.items():
        found = read_h5ad(h5ad(cells), LIMITS)
        assert found.counts_from == place == query.find_counts(cells)[2]
        assert np.array_equal(dense_of(found), DENSE)
    with pytest.raises(CountsError, match="not raw counts"):
        read_h5ad(h5ad(logged), LIMITS)


def test_symbols_and_categorical_columns_are_read() -> None:
    cells = adata()
    cells.var["feature_name"] = pd.Categorical([name.lower() for name in GENES])
    assert read_h5ad(h5ad(cells), LIMITS).symbols == tuple(name.lower() for name in GENES)


def test_old_files_are_read() -> None:
    sink = BytesIO()
    with h5py.File(sink, "w") as file:
        file["obs"] = np.array([(name.encode(),) for name in IDS], dtype=[("index", "S10")])
        file["var"] = np.array([(name.encode(),) for name in GENES], dtype=[("index", "S10")])
        group = file.create_group("X")
        csr = sparse.csr_matrix(DENSE)
        group.attrs["h5sparse_format"], group.attrs["h5sparse_shape"] = "csr", csr.shape
        group["data"], group["indices"], group["indptr"] = csr.data, csr.indices, csr.indptr
    cells = read_h5ad(sink.getvalue(), LIMITS)
    assert list(cells.ids) == IDS
    assert np.array_equal(dense_of(cells), DENSE)


def test_repeated_entries_are_summed_and_zeros_dropped() -> None:
    body = as_json(genes=["A", "B"], matrix={"data": [1, 2, 0], "indices": [1, 1, 0], "indptr": [0, 3]})
    cells = read_body("json", body, LIMITS)
    assert (cells.data.tolist(), cells.indices.tolist()) == ([3], [1])


ONE = {"data": [1], "indices": [0], "indptr": [0, 1]}


@pytest.mark.parametrize(
    ("document", "kind", "text"),
    [
        (b"not json", InvalidBodyError, "Invalid JSON"),
        (b"[]", InvalidBodyError, "body"),
        ({"genes": ["A"]}, InvalidBodyError, "either `cells` or `matrix`"),
        ({"genes": ["A"], "cells": [{"count": [1]}]}, InvalidBodyError, r"cells\.0"),
        ({"genes": ["A"], "cells": [{"counts": [1, 2]}]}, InvalidBodyError, "2 counts for 1 genes"),
        ({"genes": ["A"], "cells": [{"counts": {"B": 1}}]}, InvalidBodyError, "not in `genes`"),
        ({"genes": ["A", "A"], "cells": [{"counts": {"A": 1}}]}, InvalidBodyError, "twice"),
        ({"cells": [{"counts": [1]}]}, InvalidBodyError, "no `genes`"),
        ({"genes": ["A"], "cells": []}, InvalidBodyError, "0 cells"),
        ({"genes": ["A"], "cells": [{"counts": [1.5]}]}, CountsError, "not integers"),
        ({"genes": ["A"], "cells": [{"counts": [-1]}]}, CountsError, "smallest"),
        ({"genes": ["A"], "cells": [{"counts": ["NaN"]}]}, CountsError, "NaN"),
        ({"genes": ["A"], "cells": [{"counts": [1e300]}]}, CountsError, "largest"),
        ({"genes": ["A"], "cells": [{"counts": [1]}] * 101}, TooLargeError, "101 cells"),
        ({"genes": ["A" * 600], "cells": [{"counts": [1]}]}, InvalidBodyError, "characters"),
        ({"genes": ["A"], "ids": ["a", "b"], "matrix": ONE}, InvalidBodyError, "indptr"),
        ({"genes": ["A"], "matrix": ONE | {"indices": [1]}}, InvalidBodyError, "indices"),
        ({"genes": ["A"], "matrix": ONE | {"indices": [-1]}}, InvalidBodyError, "indices"),
        ({"genes": ["A"], "matrix": ONE | {"indptr": [0, 2]}}, InvalidBodyError, "indptr"),
        ({"genes": ["A"], "matrix": ONE | {"data": [1, 1]}}, InvalidBodyError, "length"),
        ({"genes": ["A"], "matrix": ONE | {"indices": [2**70]}}, InvalidBodyError, "2\\*\\*63"),
    ],
)
def test_wrong_json(document: Any, kind: type[CellmillError], text: str) -> None:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    with pytest.raises(kind, match=text):
        read_body("json", body, LIMITS)


def test_wrong_arrow() -> None:
    names, values = sparse_rows()
    good = as_arrow(names, values, IDS, dictionary=False)
    with pytest.raises(InvalidBodyError, match="Arrow"):
        read_body("arrow", good[:-200], LIMITS)
    with pytest.raises(InvalidBodyError, match="Arrow"):
        read_body("arrow", b"x" * 100, LIMITS)
    table = pa.table({"genes": [["A"]], "counts": [[1, 2]]})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(InvalidBodyError, match="differ in length"):
        read_body("arrow", bytes(sink.getvalue()), LIMITS)


def test_h5ad_that_is_none() -> None:
    for body in (b"", b"not hdf5", h5ad(CELLS)[:2000]):
        with pytest.raises(SourceError, match="h5ad"):
            read_body("h5ad", body, LIMITS)


def test_content_types() -> None:
    assert kind_of("application/json; charset=utf-8") == "json"
    for wrong in ("", "text/csv", "application/x-python-pickle"):
        with pytest.raises(MediaTypeError):
            kind_of(wrong)
