"""Parquet and Arrow files, against pandas."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellmill.errors import CellmillError, SourceError
from cellmill.ingestion import ingest
from cellmill.ingestion.sources.arrow_features import folders_of_tables
from tests.ingestion.cells import config, counts, genes
from tests.ingestion.sources.opened import format_of, opened, whole

KINDS = ("parquet", "arrow", "stream", "feather")


def dense(n_cells: int = 40, n_genes: int = 15, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return rng.poisson(0.7, (n_cells, n_genes)).astype(np.int32)


def save(table: pa.Table, path: Path, kind: str, rows: int = 7) -> Path:
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=rows)
    elif kind == "feather":
        pyarrow.feather.write_feather(table, path, chunksize=rows, compression="lz4")
    else:
        new = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
        with new(str(path), table.schema) as writer:
            writer.write_table(table, rows)
    return path


def lists(found: Any, *, text: bool = False, mark: bool = False, offset: int = 3) -> pa.Table:
    """Return cells as Tahoe-100M has them: numbers of genes and counts in lists, after a mark."""
    features, values = [], []
    for row in found:
        hit = np.flatnonzero(row)
        start: list[Any] = [1] if mark else []
        features.append([genes(15)[i] for i in hit] if text else start + [int(i) + offset for i in hit])
        values.append([-2.0] * len(start) + [float(value) for value in row[hit]])
    n = len(found)
    return pa.table(
        {
            "genes": pa.array(features, pa.list_(pa.string() if text else pa.int64())),
            "expressions": pa.array(values, pa.list_(pa.float32())),
            "BARCODE_SUB_LIB_ID": [f"c{i}" for i in range(n)],
            "drug": pa.array([["DMSO", "x"][i % 2] for i in range(n)]).dictionary_encode(),
            "dose": pa.array([i if i % 3 else None for i in range(n)], pa.int64()),
        }
    )


def gene_table(offset: int = 3) -> pa.Table:
    order = np.random.default_rng(1).permutation(15)
    return pa.table(
        {
            "gene_symbol": [f"S{i}" for i in order],
            "ensembl_id": [genes(15)[i] for i in order],
            "token_id": pa.array(order + offset, pa.int64()),
        }
    )


def wide(found: Any) -> pa.Table:
    frame = pd.DataFrame(found, columns=genes(found.shape[1]), index=pd.Index([f"c{i}" for i in range(len(found))]))
    frame.insert(0, "donor", [f"d{i % 3}" for i in range(len(found))])
    frame["age"] = np.arange(len(found))
    frame["is_primary_data"] = True
    return pa.Table.from_pandas(frame)


def in_order(source: Any) -> Any:
    """Return the matrix with its columns in the order of `genes`."""
    var = source.var("X")
    ids = source.default_names("X")[0]
    names = list(var.index if ids == "index" else var[ids])
    return whole(source, step=9)[:, [names.index(gene) for gene in genes(15)]]


@pytest.mark.parametrize("mark", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_lists_with_a_table_of_genes(tmp_path: Path, kind: str, mark: bool) -> None:
    found = dense()
    save(lists(found, mark=mark), tmp_path / f"cells.{kind.replace('stream', 'arrow')}", kind)
    pq.write_table(gene_table(), tmp_path / "gene_metadata.parquet")
    path = tmp_path / f"cells.{kind.replace('stream', 'arrow')}"
    for place in (tmp_path, path):
        assert format_of(place) == "parquet"
        source = opened(place)
        assert np.array_equal(in_order(source), found)
        assert source.default_names("X") == ("ensembl_id", "gene_symbol")
        stored = np.count_nonzero(found) + mark * 40
        assert stored <= source.starts("X")[-1] <= stored + 40
        source.close()
    obs = opened(path).obs(["drug", "dose"], 3, 20)
    assert obs.index.tolist() == [f"c{i}" for i in range(3, 20)]
    assert obs["drug"].tolist() == [["DMSO", "x"][i % 2] for i in range(3, 20)]
    assert obs["dose"].isna().tolist() == [i % 3 == 0 for i in range(3, 20)]
    assert obs["dose"].dtype == pd.Int64Dtype()


@pytest.mark.parametrize("kind", KINDS)
def test_lists_of_names_need_no_table(tmp_path: Path, kind: str) -> None:
    found = dense()
    source = opened(save(lists(found, text=True), tmp_path / "cells", kind))
    assert np.array_equal(in_order(source), found)
    assert source.default_names("X") == ("index", None)


@pytest.mark.parametrize("kind", KINDS)
def test_lists_may_be_encoded_by_dictionaries(tmp_path: Path, kind: str) -> None:
    found = dense()
    table = lists(found, text=True)
    for name, values in (("genes", pa.string()), ("expressions", pa.float32())):
        plain = table[name].combine_chunks()
        encoded = pa.ListArray.from_arrays(plain.offsets, plain.flatten().dictionary_encode())
        table = table.set_column(table.schema.get_field_index(name), name, encoded)
        assert encoded.type == pa.list_(pa.dictionary(pa.int32(), values))
    source = opened(save(table, tmp_path / "cells", kind))
    assert np.array_equal(in_order(source), found)
    source.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_column_for_each_gene(tmp_path: Path, kind: str) -> None:
    found = dense()
    path = save(wide(found), tmp_path / "cells", kind)
    source = opened(path, obs={"age": "age"})
    assert np.array_equal(in_order(source), found)
    assert source.obs_columns() == ["donor", "age", "is_primary_data"]
    wanted = pd.read_parquet(path) if kind == "parquet" else wide(found).to_pandas()
    got = source.obs(["donor", "age"], 5, 30)
    pd.testing.assert_frame_equal(got, wanted[["donor", "age"]].iloc[5:30], check_dtype=False, check_names=False)
    assert "age" in opened(path).var("X").index
    table = tmp_path / "genes.csv"
    table.write_text("gene_id,gene_name\n" + "".join(f"{gene},S\n" for gene in genes(15)))
    assert opened(path).var("X")["gene_id"].tolist() == genes(15)


@given(
    found=st.integers(0, 10**6).map(lambda seed: dense(1 + seed % 23, 15, seed)),
    rows=st.integers(1, 30),
    kind=st.sampled_from(KINDS),
    text=st.booleans(),
    data=st.data(),
)
def test_any_range_of_rows_of_any_division_into_files_and_groups(
    tmp_path_factory: pytest.TempPathFactory, found: Any, rows: int, kind: str, text: bool, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("cells")
    table, ending = lists(found, text=text), "parquet" if kind == "parquet" else "arrow"
    edges = [0, *sorted(data.draw(st.lists(st.integers(0, len(found)), max_size=2))), len(found)]
    for number, (low, high) in enumerate(itertools.pairwise(edges)):
        save(table.slice(low, high - low), folder / f"part-{number}.{ending}", kind, rows)
    pq.write_table(gene_table(), folder / "gene_metadata.parquet")
    start = data.draw(st.integers(0, len(found)))
    stop = data.draw(st.integers(start, len(found)))
    source = opened(folder)
    names = source.var("X")["ensembl_id"].tolist()
    block = source.rows("X", start, stop).toarray()
    assert np.array_equal(block[:, [names.index(gene) for gene in genes(15)]], found[start:stop])
    assert source.obs([], start, stop).index.tolist() == [f"c{i}" for i in range(start, stop)]
    source.close()


def test_what_is_ingested_equals_the_table_and_twice_changes_nothing(tmp_path: Path) -> None:
    found = dense()
    found[:, 0] = 1
    (tmp_path / "data").mkdir()
    (tmp_path / "metadata").mkdir()
    for number in range(3):
        part = found[number * 15 : number * 15 + 15]
        table = lists(part, mark=True).set_column(2, "barcode", [[f"c{number * 15 + i}" for i in range(len(part))]])
        save(table, tmp_path / "data" / f"train-0000{number}.parquet", "parquet")
    pq.write_table(gene_table(), tmp_path / "metadata" / "gene_metadata.parquet")
    settings = config(tmp_path / "atlas", tmp_path / "data", source={"obs": "all"}, shard_cells=11)
    assert ingest(settings).changed
    assert not ingest(settings).changed
    wanted = pd.DataFrame(found.astype(float), index=[f"c{i}" for i in range(40)], columns=genes(15))
    pd.testing.assert_frame_equal(counts(tmp_path / "atlas"), wanted.sort_index().sort_index(axis=1))
    moved = config(tmp_path / "other", tmp_path / "data", source={"features": "metadata/gene_metadata.parquet"})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        ingest(moved)
    pd.testing.assert_frame_equal(counts(tmp_path / "other"), counts(tmp_path / "atlas"))
    save(lists(dense(15, seed=9)), tmp_path / "data" / "train-00000.parquet", "parquet")


def columns(**values: Any) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        found = lists(dense(), text=values.pop("text", False))
        for name, column in values.items():
            found = found.set_column(found.schema.get_field_index(name), name, column)
        pq.write_table(found, path)

    return make


def shorter(path: Path) -> None:
    found = lists(dense(), text=True)
    pq.write_table(found.set_column(1, "expressions", pa.array([[1.0]] * 40)), path)


def cut(path: Path) -> None:
    pq.write_table(lists(dense(), text=True), path)
    path.write_bytes(path.read_bytes()[:-20])


def damaged(path: Path) -> None:
    pq.write_table(lists(dense(2000), text=True), path, compression="zstd")
    data = bytearray(path.read_bytes())
    data[100:400] = b"\xff" * 300
    path.write_bytes(bytes(data))


def cut_stream(path: Path) -> None:
    save(lists(dense(400), text=True), path, "stream", 50)
    path.write_bytes(path.read_bytes()[:-3000])


def many_rows(path: Path) -> None:
    save(pa.table({"genes": pa.nulls(2 * 10**9)}), path, "arrow", 2 * 10**9)


def many_bytes(path: Path) -> None:
    zeros = pa.table({"a": pa.array(np.zeros(34_000_000, np.int64))})
    pq.write_table(zeros, path, compression="zstd", use_dictionary=False)


def empty(path: Path) -> None:
    pq.write_table(lists(dense(0), text=True), path)


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (columns(), "no table says which genes"),
        (columns(genes=pa.array([[1.5]] * 40)), "lists of double"),
        (columns(text=True, expressions=pa.array([["a"]] * 40)), "lists of string"),
        (shorter, "different lengths"),
        (cut, "cut short"),
        (damaged, "damaged"),
        (cut_stream, "cut short"),
        (many_rows, "claims 2,000,000,000 rows"),
        (many_bytes, "claims 0.3 GB"),
        (empty, "no cells"),
        (lambda path: pq.write_table(pa.table({"a": ["x"]}), path), "neither lists"),
        (lambda path: pq.write_table(pa.table({"G1": [1, None], "b": ["x", "y"]}), path), "gaps"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, make: Callable[[Path], None], what: str) -> None:
    make(tmp_path / "cells")
    with pytest.raises(SourceError, match=what) as caught:
        whole(opened(tmp_path / "cells"))
    assert "cells" in caught.value.where


def test_genes_that_the_table_does_not_have_are_refused(tmp_path: Path) -> None:
    save(lists(dense()), tmp_path / "cells.parquet", "parquet")
    pq.write_table(gene_table().slice(0, 14), tmp_path / "genes.parquet")
    with pytest.raises(SourceError, match="table of genes does not have"):
        whole(opened(tmp_path / "cells.parquet"))
    pq.write_table(pa.concat_tables([gene_table(), gene_table()]), tmp_path / "genes.parquet")
    with pytest.raises(SourceError, match="two features alike"):
        opened(tmp_path / "cells.parquet")
    (tmp_path / "genes.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(SourceError, match="damaged"):
        opened(tmp_path / "cells.parquet")
    with pytest.raises(SourceError, match="does not exist"):
        opened(tmp_path / "cells.parquet", features=str(tmp_path / "none.csv"))


def test_files_of_two_tables_in_one_folder_are_refused(tmp_path: Path) -> None:
    save(lists(dense(), text=True), tmp_path / "a.parquet", "parquet")
    save(lists(dense(), text=True).drop_columns(["dose"]), tmp_path / "b.parquet", "parquet")
    with pytest.raises(SourceError, match=r"different columns \(dose\)"):
        opened(tmp_path)


def test_scaled_values_are_refused_as_no_counts(tmp_path: Path) -> None:
    found = lists(dense(), text=True)
    scaled = pa.array([[value * 0.3 for value in row] for row in found["expressions"].to_pylist()])
    save(found.set_column(1, "expressions", scaled), tmp_path / "cells", "parquet")
    with pytest.raises(CellmillError, match="not raw counts"):
        ingest(config(tmp_path / "atlas", tmp_path / "cells"))


@pytest.mark.parametrize("root", ["s3://bucket", "https://host"])
def test_no_table_of_genes_is_looked_for_in_another_bucket(root: str) -> None:
    assert folders_of_tables(root) == [root, f"{root}/metadata"]
    assert folders_of_tables(f"{root}/data") == [f"{root}/data", f"{root}/data/metadata", f"{root}/metadata"]
