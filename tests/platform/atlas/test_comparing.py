"""What changed between snapshots, and what two selections have in common, against sets and loops."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellmill.atlas import Atlas, Selection
from cellmill.atlas import leakage as module
from cellmill.atlas.comparing import compare
from cellmill.atlas.leakage import find_leakage
from cellmill.atlas.overlay import Overlay, write_overlay
from cellmill.errors import ConfigError
from tests.ingestion.metadata import metadata_shard
from tests.platform.atlas.builders import add_shard, random_counts, small_atlas


def test_a_comparison_counts_data_sets_shards_cells_and_features(tmp_path: Path) -> None:
    atlas = small_atlas(tmp_path)
    alpha, beta = atlas.snapshot().shards
    assert compare(atlas.snapshot(1), atlas.snapshot(1)).datasets == {}
    none = np.empty(0, np.uint32)
    name = write_overlay(atlas.storage, "alpha", Overlay(np.array([3, 5], np.uint32), none))
    gamma = add_shard(atlas, "gamma", random_counts(10, 30, seed=4), genes=range(5, 35))
    atlas.commit([alpha.model_copy(update={"overlay": name, "n_cells": 58}), gamma], remove=[beta.key])
    found = compare(atlas.snapshot(1), atlas.snapshot(2))
    assert (found.cells_before, found.cells_after) == (100, 68)
    short = {
        name: (c.kind, c.cells_added, c.cells_removed, c.shards_added, c.shards_removed, c.shards_changed)
        for name, c in found.datasets.items()
    }
    assert short == {
        "alpha": ("changed", 0, 2, 0, 0, 1),
        "beta": ("removed", 0, 40, 0, 1, 0),
        "gamma": ("added", 10, 0, 1, 0, 0),
    }
    assert [(c.features_added, c.features_removed) for c in found.datasets.values()] == [(0, 0), (0, 25), (30, 0)]
    back = compare(atlas.snapshot(2), atlas.snapshot(1))
    assert {name: change.cells_added for name, change in back.datasets.items()} == {"alpha": 2, "beta": 40, "gamma": 0}


CELLS = st.lists(
    st.tuples(st.integers(0, 12), st.sampled_from(["p", "q"]), st.booleans(), st.integers(0, 1)), max_size=12
)


@settings(max_examples=60)
@given(left=CELLS, right=CELLS, n_parts=st.sampled_from([1, 4]))
def test_leakage_is_what_sets_say(tmp_path_factory: Any, left: Any, right: Any, n_parts: int) -> None:
    """Cells are (content, barcode, nearly empty, data set)."""
    tmp_path = tmp_path_factory.mktemp("leakage")
    sides = []
    for name, cells in (("a", left), ("b", right)):
        atlas = Atlas.create(tmp_path / name)
        entries = []
        for dataset in (0, 1):
            mine = [cell for cell in cells if cell[3] == dataset]
            if mine:
                hashes = np.array([[content, int(near)] for content, _, near, _ in mine], np.uint64)
                entries.append(
                    metadata_shard(
                        atlas.storage,
                        f"d{dataset}",
                        f"{name}{dataset}",
                        hashes * np.uint64(0x9E3779B97F4A7C15),
                        n_genes=[10 if near else 500 for _, _, near, _ in mine],
                        barcodes=[barcode for _, barcode, _, _ in mine],
                    )
                )
        atlas.commit(entries)
        sides.append(atlas.snapshot().select())
    if not left or not right:
        with pytest.raises(ConfigError, match="no cells"):
            find_leakage(*sides)
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PART", 1 if n_parts > 1 else 1 << 20)
        found = find_leakage(*sides)
    first: dict[Any, int] = {}
    for cell in left:
        key = (cell[0], cell[2], cell[1] if cell[2] else "")
        first[key] = min(first.get(key, 9), cell[3])
    pairs: Counter[tuple[str, str]] = Counter()
    for content, barcode, near, dataset in right:
        key = (content, near, barcode if near else "")
        if key in first:
            # Data sets are numbered in the order in which A has them.
            pairs[f"d{first[key]}", f"d{dataset}"] += 1
    assert {(pair.a, pair.b): pair.cells for pair in found.by_dataset} == dict(pairs)
    assert found.equal_cells == pairs.total()
    assert found.nearly_empty == sum(cell[2] for cell in left + right)
    names = {(cell[3], cell[1]) for cell in left}
    assert found.same_barcodes == sum((cell[3], cell[1]) in names for cell in right)
    assert set(found.datasets) == {f"d{d}" for d in {c[3] for c in left} & {c[3] for c in right}}


def test_leakage_of_two_splits(tmp_path: Path) -> None:
    snapshot = small_atlas(tmp_path).snapshot()

    def pair(a: str, b: str) -> tuple[Selection, Selection]:
        return snapshot.select(a), snapshot.select(b)

    apart = find_leakage(*pair("donor = 'd1'", "donor in ['d2', 'd3']"))
    assert apart.clean
    assert apart.datasets == ("alpha",)
    split = find_leakage(*pair("dataset = 'alpha' and age < 30", "dataset = 'alpha' and age >= 20"))
    assert (split.same_cells, split.equal_cells, split.same_barcodes) == (10, 10, 10)
    assert (split.donor_columns, split.donors, split.clean) == (("donor", "donor"), ("alpha: d1", "alpha: d2"), False)
    with pytest.raises(ConfigError, match="no column 'person'"):
        find_leakage(*pair("donor = 'd1'", "donor = 'd2'"), donor="person")


def test_donors_are_compared_though_their_columns_have_other_names(tmp_path: Path) -> None:
    sides = []
    for column, start in (("donor_id", 0), ("donor", 1)):
        atlas = Atlas.create(tmp_path / column)
        names = [f"D{start + i % 2}" for i in range(10)]
        obs = {column: names, "person": names, f"own_{column}": names}
        atlas.commit([add_shard(atlas, "same", random_counts(10, 30, seed=start), obs=obs)])
        sides.append(atlas.snapshot().select())
    named = [None, "person", ("own_donor_id", "own_donor")]
    expected = [("donor_id", "donor"), ("person", "person"), ("own_donor_id", "own_donor")]
    for donor, columns in zip(named, expected, strict=True):
        found = find_leakage(*sides, donor=donor)
        assert (found.donor_columns, found.donors, found.clean) == (columns, ("same: D1",), False)
    with pytest.raises(ConfigError, match="no column 'own_donor'"):
        find_leakage(*sides, donor="own_donor")
    with pytest.raises(ConfigError, match="Two things"):
        find_leakage(*sides, donor=["person"] * 3)
