"""An atlas that was compacted is ingested into, withdrawn from and kept up to date as if it were not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import pytest

from cellmill.atlas import Atlas
from cellmill.atlas.compacting import compact
from cellmill.atlas.entry import COMPACTED
from cellmill.atlas.hash_index import HashIndex
from cellmill.atlas.withdrawals import lift
from cellmill.atlas.withdrawing import remove
from cellmill.errors import ConfigError
from cellmill.ingestion import ingest
from cellmill.ingestion.config import DuplicateConfig
from tests.ingestion.cells import config, counts, expected, make_adata, write

OBS = {"source": {"obs": {"donor": "donor"}}}


def same(atlas: Atlas, *adatas: Any) -> None:
    assert counts(atlas).equals(expected(adatas))
    atlas.verify().check()
    HashIndex(atlas.storage, atlas.snapshot().shards)


def datasets(atlas: Atlas) -> dict[str, int]:
    found: dict[str, int] = {}
    for entry in atlas.snapshot().shards:
        for part in entry.sources:
            found[part.dataset] = found.get(part.dataset, 0) + part.n_cells
    return found


@pytest.fixture
def three(tmp_path: Path) -> tuple[Atlas, dict[str, Any], dict[str, Path], Any]:
    """Three files in one compacted atlas: the first two share ten cells."""
    adatas = {
        name: make_adata(n, seed=i, start=10 * i) for i, (name, n) in enumerate({"a": 60, "b": 40, "c": 30}.items())
    }
    shared = adatas["a"][:10].copy()
    shared.obs_names = [f"again-{i}" for i in range(10)]
    adatas["b"] = ad.concat([adatas["b"], shared], join="outer", fill_value=0)
    paths = {name: write(adata, tmp_path / f"{name}.h5ad") for name, adata in adatas.items()}
    root = tmp_path / "atlas"
    settings = config(root, *paths.values(), shard_cells=25, duplicates=DuplicateConfig(min_genes=1), **OBS)
    ingest(settings)
    atlas = Atlas.open(root)
    assert compact(atlas, shard_cells=33).changed
    assert {entry.dataset for entry in atlas.snapshot().shards} == {COMPACTED}
    return atlas, adatas, paths, settings


def test_the_same_files_again_are_not_even_read(three: Any) -> None:
    atlas, _, _, settings = three
    again = ingest(settings)
    assert (again.changed, len(again.unchanged), again.reports) == (False, 3, ())
    assert datasets(atlas) == {"a": 60, "b": 40, "c": 30}
    assert not list(Path(atlas.url).glob("staging/*"))


def test_a_changed_file_replaces_its_own_rows_alone(three: Any) -> None:
    atlas, adatas, paths, settings = three
    adatas["c"].X = adatas["c"].X * 2
    write(adatas["c"], paths["c"])
    again = ingest(settings)
    assert again.changed
    assert [report.dataset for report in again.reports] == ["c"]
    same(atlas, adatas["a"], adatas["b"][:40], adatas["c"])
    kinds = {entry.dataset for entry in atlas.snapshot().shards}
    assert kinds == {COMPACTED, "c"}
    assert all("c" not in entry.datasets for entry in atlas.snapshot().shards if entry.parts)
    assert not ingest(settings).changed
    compact(atlas, shard_cells=40)
    same(atlas, adatas["a"], adatas["b"][:40], adatas["c"])
    assert not ingest(settings).changed


def test_a_hidden_cell_is_shown_when_its_twin_leaves(three: Any) -> None:
    atlas, adatas, paths, settings = three
    adatas["a"] = adatas["a"][10:].copy()
    write(adatas["a"], paths["a"])
    ingest(settings)
    assert datasets(atlas) == {"a": 50, "b": 50, "c": 30}
    same(atlas, adatas["a"], adatas["b"], adatas["c"])


def test_duplicates_of_compacted_cells_are_found_and_told_by_data_set(three: Any, tmp_path: Path) -> None:
    atlas = three[0]
    copies = make_adata(60, seed=0)[20:50].copy()
    other = make_adata(30, seed=2, start=20)[:7].copy()
    late = ad.concat([copies, other], join="outer", fill_value=0)
    late.obs_names = [f"late-{i}" for i in range(37)]
    more = config(Path(atlas.url), write(late, tmp_path / "late.h5ad"), duplicates=DuplicateConfig(min_genes=1))
    report = ingest(more).reports[0]
    assert report.cells_out == 0
    assert report.dropped == {"duplicate of a cell in a": 30, "duplicate of a cell in c": 7}
    assert datasets(atlas)["late"] == 0


def test_withdrawn_cells_stay_away_and_come_back_when_it_is_lifted(three: Any) -> None:
    atlas, adatas, _, settings = three
    done = remove(atlas, "donor = 'd1'", "consent")
    assert done.cells == {"a": 20, "b": 13, "c": 10}
    assert not ingest(settings).changed
    without = [one[one.obs["donor"] != "d1"] for one in (adatas["a"], adatas["b"], adatas["c"])]
    # Cells of b that were hidden as duplicates of cells of a went with these: they are of the same donor.
    same(atlas, without[0], without[1][: 40 - 13], without[2])
    lift(atlas.storage, 1, "they agree")
    again = ingest(settings)
    assert again.changed
    assert datasets(atlas) == {"a": 60, "b": 40, "c": 30}
    same(atlas, adatas["a"], adatas["b"][:40], adatas["c"])
    assert not ingest(settings).changed


def test_a_data_set_that_is_withdrawn_whole_is_not_read_again(three: Any) -> None:
    atlas, adatas, _, settings = three
    remove(atlas, "dataset = 'c'", "licence")
    assert datasets(atlas) == {"a": 60, "b": 40}
    again = ingest(settings)
    assert (again.changed, len(again.unchanged)) == (False, 3)
    lift(atlas.storage, 1, "licence found")
    assert ingest(settings).changed
    same(atlas, adatas["a"], adatas["b"][:40], adatas["c"])


def test_a_withdrawal_that_took_whole_shards_can_be_lifted(three: Any) -> None:
    atlas, adatas, _, settings = three
    compact(atlas, shard_cells=8, seed=1)
    remove(atlas, "donor = 'd1'", "consent")
    lift(atlas.storage, 1, "they agree")
    ingest(settings)
    assert datasets(atlas) == {"a": 60, "b": 40, "c": 30}
    same(atlas, adatas["a"], adatas["b"][:40], adatas["c"])


def test_a_compacted_file_under_another_name_is_refused(three: Any) -> None:
    atlas, _, paths, _ = three
    renamed = config(Path(atlas.url), paths["a"], source={"dataset": "other", "obs": {"donor": "donor"}})
    with pytest.raises(ConfigError, match="as data set 'a'"):
        ingest(renamed)
