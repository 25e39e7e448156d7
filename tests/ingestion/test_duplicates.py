import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import anndata as ad
import numpy as np
import pytest

from cellmill.atlas import Atlas
from cellmill.atlas.withdrawing import remove
from cellmill.ingestion import IngestConfig, ingest
from cellmill.ingestion.duplicates import find_duplicates
from cellmill.ingestion.result import IngestResult
from tests.ingestion.cells import config, make_adata, write

POLICY = {"min_genes": 1}


def barcodes(atlas: Path, where: str | None = None) -> set[str]:
    return set(Atlas.open(atlas).snapshot().cells(["barcode"], where).column(0).to_pylist())


def overlapping(n: int, seed: int, *, shared: int, of: Any) -> Any:
    """Make new cells, and some of another data set under other barcodes and with the genes in another order."""
    other = of[:shared].copy()
    other.obs_names = [f"copy-{name}" for name in other.obs_names]
    both = ad.concat([make_adata(n, seed=seed), other])
    return both[:, np.random.default_rng(seed).permutation(both.n_vars)].copy()


def test_a_cell_that_came_earlier_is_hidden(tmp_path: Path) -> None:
    first = make_adata(40, seed=1)
    second = overlapping(30, 2, shared=10, of=first)
    ingest(config(tmp_path / "atlas", write(first, tmp_path / "a.h5ad"), shard_cells=16))
    # By default cells of so few genes are equal only if their barcodes are, too.
    assert ingest(config(tmp_path / "atlas", write(second, tmp_path / "b.h5ad"))).reports[0].cells_out == 40

    atlas = tmp_path / "strict"
    ingest(config(atlas, tmp_path / "a.h5ad", shard_cells=16, duplicates=POLICY))
    result = ingest(config(atlas, tmp_path / "b.h5ad", shard_cells=16, duplicates=POLICY))
    (report,) = result.reports
    assert report.dropped == {"duplicate of a cell in a": 10}
    assert report.cells_out == 30
    assert report.hash_bytes_read == int(Atlas.open(atlas).log()[0].facts["hash_bytes_read"]) > 0
    assert barcodes(atlas) == {*first.obs_names, *second.obs_names[:30]}
    assert Atlas.open(atlas).verify().sound
    assert Atlas.open(atlas).log()[0].facts["duplicates"] == "10"


def test_within_one_ingestion_the_first_source_and_row_stays(tmp_path: Path) -> None:
    first = make_adata(20, seed=1)
    twice = ad.concat([first, first])
    twice.obs_names = [*first.obs_names, *(f"again-{name}" for name in first.obs_names)]
    second = overlapping(5, 3, shared=20, of=first)
    paths = write(twice, tmp_path / "z.h5ad"), write(second, tmp_path / "a.h5ad")
    result = ingest(config(tmp_path / "atlas", *paths, shard_cells=7, duplicates=POLICY))
    assert barcodes(tmp_path / "atlas") == {*first.obs_names, *second.obs_names[:5]}
    assert [report.cells_out for report in result.reports] == [20, 5]
    assert result.reports[1].dropped == {"duplicate of a cell in this ingestion": 20}


@pytest.mark.parametrize("policy", ["mark", "keep"])
def test_policies(tmp_path: Path, policy: str) -> None:
    first = make_adata(20, seed=1)
    second = overlapping(5, 2, shared=8, of=first)
    ingest(config(tmp_path / "atlas", write(first, tmp_path / "a.h5ad"), duplicates=POLICY))
    chosen = {**POLICY, "policy": policy}
    result = ingest(config(tmp_path / "atlas", write(second, tmp_path / "b.h5ad"), duplicates=chosen))
    assert Atlas.open(tmp_path / "atlas").snapshot().n_cells == 33
    marked = barcodes(tmp_path / "atlas", "is_duplicate")
    assert marked == (set(second.obs_names[5:]) if policy == "mark" else set())
    assert result.reports[0].marked == ({"a": 8} if policy == "mark" else {})
    assert result.reports[0].cells_out == 13


def test_nearly_empty_cells_need_the_same_barcode(tmp_path: Path) -> None:
    first = make_adata(20, seed=1)
    second = overlapping(5, 2, shared=8, of=first)
    second.obs_names = [*second.obs_names[:5], *first.obs_names[:3], *second.obs_names[8:]]
    ingest(config(tmp_path / "atlas", write(first, tmp_path / "a.h5ad")))
    result = ingest(config(tmp_path / "atlas", write(second, tmp_path / "b.h5ad")))
    assert result.reports[0].dropped == {"duplicate of a cell in a": 3}


def test_a_replaced_source_takes_its_hashes_with_it_and_hidden_twins_come_back(tmp_path: Path) -> None:
    first = make_adata(20, seed=1)
    second = overlapping(5, 2, shared=8, of=first)
    write(first, tmp_path / "a.h5ad")
    write(second, tmp_path / "b.h5ad")
    both = config(tmp_path / "atlas", tmp_path / "a.h5ad", tmp_path / "b.h5ad", duplicates=POLICY, shard_cells=6)
    ingest(both)
    assert barcodes(tmp_path / "atlas") == {*first.obs_names, *second.obs_names[:5]}
    # The same cells in another order: none is a duplicate of its former self.
    write(first[::-1].copy(), tmp_path / "a.h5ad")
    ingest(both)
    assert barcodes(tmp_path / "atlas") == {*first.obs_names, *second.obs_names[:5]}
    # Three of the shared cells are withdrawn from the first: their twins in the second are shown again.
    write(first[3:].copy(), tmp_path / "a.h5ad")
    result = ingest(both)
    assert barcodes(tmp_path / "atlas") == {*first.obs_names[3:], *second.obs_names[:8]}
    assert result.reports[0].dropped == {}
    atlas = Atlas.open(tmp_path / "atlas")
    assert atlas.verify().sound
    assert atlas.snapshot(1).n_cells == 25
    # And a third data set with those cells finds them.
    third = overlapping(2, 5, shared=3, of=first)
    result = ingest(config(tmp_path / "atlas", write(third, tmp_path / "c.h5ad"), duplicates=POLICY))
    assert result.reports[0].dropped == {"duplicate of a cell in b": 3}


def ingest_racing(job: IngestConfig, wins: bool, searched: Path) -> IngestResult:
    """Ingest so that of two the one that wins commits after the other has searched, and before it has committed."""

    def held(storage: Any, new: Any, stay: Any, *others: Any) -> Any:
        found = find_duplicates(storage, new, stay, *others)
        if not stay:
            if not wins:
                searched.touch()
            deadline = time.monotonic() + 60
            while not (searched.exists() if wins else Atlas.open(job.atlas).snapshot().version):
                assert time.monotonic() < deadline
                time.sleep(0.01)
        return found

    with patch("cellmill.ingestion.commit.find_duplicates", held):
        return ingest(job)


def test_of_two_ingestions_at_once_each_shared_cell_is_kept_once(tmp_path: Path) -> None:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for seed in range(6):
            sets = {"a": make_adata(30, seed=10 * seed)}
            sets["b"] = overlapping(10, 10 * seed + 1, shared=15, of=sets["a"])
            atlas = tmp_path / f"atlas{seed}"
            jobs = {
                name: config(atlas, write(adata, tmp_path / f"{name}{seed}.h5ad"), duplicates=POLICY, shard_cells=8)
                for name, adata in sets.items()
            }
            # First both orders of a race that one is sure to lose; then whatever happens.
            if seed < 2:
                winner = "ab"[seed]
                marker = tmp_path / f"searched{seed}"
                futures = {n: pool.submit(ingest_racing, job, n == winner, marker) for n, job in jobs.items()}
            else:
                futures = {name: pool.submit(ingest, job) for name, job in jobs.items()}
            snapshots = {name: future.result().snapshot for name, future in futures.items()}
            assert sorted(snapshots.values()) == [1, 2]
            loser = max(snapshots, key=lambda name: snapshots[name])
            assert seed >= 2 or loser != winner
            # The one that came second tells what it lost.
            (report,) = futures[loser].result().reports
            assert sum(report.dropped.values()) == 15
            assert len(barcodes(atlas) & set(sets[loser].obs_names)) == sets[loser].n_obs - 15
            check_each_once(Atlas.open(atlas), 40)


def check_each_once(atlas: Atlas, n_cells: int) -> None:
    hashes = atlas.snapshot().cells(["content_hash"]).column(0).to_pylist()
    assert len(hashes) == len(set(hashes)) == n_cells
    assert atlas.verify().sound


def test_a_mark_goes_with_the_cell_that_it_points_at(tmp_path: Path) -> None:
    adata = make_adata(60, seed=1)
    adata.obs["donor"] = "d1"
    root, a = tmp_path / "atlas", tmp_path / "a.h5ad"
    settings: Any = {"source": {"obs": {"donor": "donor"}}, "duplicates": {"policy": "mark"}}
    ingest(config(root, write(adata[:40].copy(), a), **settings))
    adata.obs["donor"] = "d2"
    ingest(config(root, write(adata[20:].copy(), tmp_path / "b.h5ad"), shard_cells=16, **settings))
    third = adata[30:40].copy()
    third.obs["donor"] = "d3"
    ingest(config(root, write(third, tmp_path / "c.h5ad"), **settings))

    def marked() -> dict[str, int]:
        cells = Atlas.open(root).snapshot().cells(["dataset"], "is_duplicate").column(0).to_pylist()
        return {name: cells.count(name) for name in sorted(set(cells))}

    assert marked() == {"b": 20, "c": 10}
    remove(Atlas.open(root), "donor = 'd1'", "consent")
    assert marked() == {"c": 10}
    ingest(config(root, write(make_adata(5, seed=9), tmp_path / "b.h5ad"), **settings))
    assert marked() == {}
    Atlas.open(root).verify().check()
