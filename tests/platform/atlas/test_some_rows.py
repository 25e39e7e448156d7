"""Metadata of some rows: what is read of a shard is what was asked for, and not much more."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellmill.atlas import Atlas, Selection, cells
from tests.platform.atlas.builders import add_shard, random_counts

N = 50
COLUMNS = ["cell_id", "kind", "licence", "is_duplicate", "of_the_other"]


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    made = Atlas.create(tmp_path_factory.mktemp("rows") / "atlas")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cells, "_ROW_GROUP", 7)
        kinds = np.random.default_rng(0).choice(["A", "B", "C"], N)
        one = add_shard(made, "one", random_counts(N, 9, seed=1), obs={"kind": kinds})
        other = add_shard(made, "two", random_counts(4, 9, seed=2), obs={"of_the_other": [1, 2, 3, 4]})
    made.commit([one, other])
    return made


def of_one(atlas: Atlas, where: str) -> Selection:
    found = atlas.snapshot().select(where)
    assert [entry.dataset for entry in found.shards] == ["one"]
    return found


@given(chosen=st.sets(st.integers(0, N - 1), min_size=1), where=st.sampled_from(["dataset = 'one'", "kind = 'A'"]))
def test_some_rows_are_those_of_all(atlas: Atlas, chosen: set[int], where: str) -> None:
    selection = of_one(atlas, where)
    some = np.array(sorted(cell for cell in chosen if cell < selection.n_cells), np.int64)
    if where != "kind = 'A'":
        assert selection.n_cells == N
    whole = selection.table(0, COLUMNS)
    assert selection.table(0, COLUMNS, some).to_pylist() == [whole.to_pylist()[cell] for cell in some.tolist()]


def test_other_row_groups_are_not_read(atlas: Atlas, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[list[int]] = []
    plain = pq.ParquetFile.read_row_groups

    def noted(self: pq.ParquetFile, row_groups: list[int], **options: object) -> object:
        read.append(row_groups)
        return plain(self, row_groups, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", noted)
    of_one(atlas, "dataset = 'one'").table(0, ["kind"], np.array([8, 9, 13, 14, 48]))
    assert read == [[1, 2, 6]]
