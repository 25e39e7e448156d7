"""The bundled tables: complete, consistent, small, and what their manifest says."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
from collections import defaultdict
from importlib.resources import files
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from cellmill.errors import SourceError
from cellmill.genes.build_tables import Names, follow_retired, read_orthologs
from cellmill.genes.object_frames import read_object_column, read_object_frame
from cellmill.genes.tables import load_orthologs, load_table, read_table, sources

DATA = files("cellmill.genes").joinpath("data")


def test_the_manifest_names_every_table_with_its_sha256() -> None:
    found = {
        item.name: hashlib.sha256(item.read_bytes()).hexdigest()
        for item in DATA.iterdir()
        if item.name.endswith("parquet")
    }
    assert found == sources()["sha256"]
    assert all(package["licence"] and len(package["sha256"]) == 64 for package in sources()["packages"])
    assert sum(len(item.read_bytes()) for item in DATA.iterdir()) < 6_000_000


@pytest.mark.parametrize(("organism", "n_genes"), [("human", 78_894), ("mouse", 78_317)])
def test_every_name_leads_to_a_gene_of_the_release(organism: str, n_genes: int) -> None:
    table = load_table("mouse" if organism == "mouse" else "human")
    assert len(table) == n_genes
    assert len(set(table.ids)) == n_genes
    rows = [*table.row_of_other.values(), *table.row_of_symbol.values(), *table.row_of_replaced.values()]
    assert min(rows) == -2
    assert max(rows) < n_genes
    assert not set(table.row_of_other) & set(table.row_of_symbol)
    assert not set(table.row_of_replaced) & set(table.row_of_id)
    for symbol, row in list(table.row_of_symbol.items())[::500]:
        assert row == -2 or table.symbols[row] == symbol


def test_orthologs_are_one_to_one_and_in_both_releases() -> None:
    pairs = load_orthologs("mouse", "human")
    assert len(pairs) > 16_000
    assert len(set(pairs.values())) == len(pairs)
    assert set(pairs) <= set(load_table("mouse").ids)
    assert set(pairs.values()) <= set(load_table("human").ids)
    assert read_table("controls")["kind"].value_counts()["spike_in"] == 92


def test_orthologs_of_which_one_side_stands_twice_are_left_out() -> None:
    one_to_one = pd.DataFrame({"Human gene stable ID": ["h1", "h2", "h2"], "Gene stable ID": ["m1", "m2", "m3"]})
    human, mouse = pd.DataFrame({"id": ["h1", "h2"]}), pd.DataFrame({"id": ["m1", "m2", "m3"]})
    assert read_orthologs(one_to_one, human, mouse).to_numpy().tolist() == [["h1", "m1"]]


def test_names_of_several_genes_are_ambiguous_and_approved_symbols_keep_their_gene() -> None:
    genes = pd.DataFrame({"id": ["E1", "E2"], "symbol": ["A1", "B1"], "owner": [True, True]})
    names = Names(genes)
    names.add("OLD", "previous", "E1")
    names.add("BOTH", "alias", "E1")
    names.add("BOTH", "alias", "E2")
    names.add("B1", "alias", "E1")
    names.add("7", "alias", "E1")
    table = names.table(genes).set_index("name")
    assert table.loc["OLD", "id"] == "E1"
    assert table.loc["BOTH", "id"] is None
    assert table.loc["BOTH", "candidates"] == "A1,B1"
    assert len(table) == 2


def test_retired_ids_follow_a_symbol_that_was_approved_once() -> None:
    genes = pd.DataFrame({"id": ["ENSG1", "ENSG2"], "symbol": ["NEW", "B1"], "owner": [True, True]})
    names, found = Names(genes), defaultdict[str, set[str]](set)
    names.add("OLD", "previous", "ENSG1")
    names.add("BOTH", "previous", "ENSG1")
    names.add("BOTH", "previous", "ENSG2")
    names.add("NICK", "alias", "ENSG2")
    rows = [("ENSG8", "OLD"), ("ENSG9", "BOTH"), ("ENSG7", "NICK"), ("ENSG6", "B1"), ("ENSG1", "OLD")]
    follow_retired(pd.DataFrame(rows, columns=["id", "symbol"]), genes, names, found)
    assert found == {"ENSG8": {"ENSG1"}}


class Evil:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, (str(self.folder),))


def _frame_file(content: object) -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        group = file.create_group("df")
        group["block0_items"] = np.array([b"name", b"ids"])
        cells = group.create_dataset("block0_values", (1,), dtype=h5py.vlen_dtype(np.uint8))
        cells[0] = np.frombuffer(pickle.dumps(content, protocol=5), dtype=np.uint8)
    return buffer.getvalue()


def test_object_frames_are_read_without_unpickling(tmp_path: Path) -> None:
    values = np.empty((1, 2, 2), dtype=object)
    values[0] = [["TP53", {"E1", "E2"}], ["TP53", {"E1", "E2"}]]
    frame = read_object_frame(_frame_file(values), "frame.h5")
    assert frame.columns.tolist() == ["name", "ids"]
    assert frame["ids"].tolist() == [{"E1", "E2"}] * 2
    values[0, 0, 0] = Evil(tmp_path / "made")
    assert len(read_object_frame(_frame_file(values), "frame.h5")) == 2
    assert not (tmp_path / "made").exists()
    with pytest.raises(SourceError, match="BYTEARRAY8"):
        read_object_frame(_frame_file(bytearray(3)), "frame.h5")
    with pytest.raises(SourceError, match="multiple"):
        read_object_frame(_frame_file({}), "frame.h5")


def test_a_column_of_a_pickled_table_is_read_without_unpickling(tmp_path: Path) -> None:
    genes = {"place": ["1", Evil(tmp_path / "made"), "2"], "gene_name": ["TP53", None, "ACTB"]}
    table = pd.DataFrame(genes, index=["E1", "E2", "E3"], dtype=object)
    table.index = table.index.astype(object)
    table.columns = table.columns.astype(object)
    assert read_object_column(pickle.dumps(table, 4), "gene_name", "a.pkl") == ([*table.index], genes["gene_name"])
    with pytest.raises(SourceError, match="no text column 'symbol'"):
        read_object_column(pickle.dumps(table, 4), "symbol", "a.pkl")
    assert not (tmp_path / "made").exists()


def test_no_pickle_ships_with_the_package() -> None:
    assert all(Path(item.name).suffix in {".parquet", ".json"} for item in DATA.iterdir())
