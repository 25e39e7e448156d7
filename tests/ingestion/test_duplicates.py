from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest

from cellmill.atlas import Atlas
from cellmill.ingestion import ingest
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
    settings = config(tmp_path / "atlas", write(second, tmp_path / "b.h5ad"), shard_cells=16, duplicates=POLICY)
    # The first was ingested with the default, which takes cells of so few genes for equal only by barcode as well.
    assert ingest(settings).reports[0].cells_out == 40

    atlas = tmp_path / "strict"
    ingest(config(atlas, tmp_path / "a.h5ad", shard_cells=16, duplicates=POLICY))
    result = ingest(config(atlas, tmp_path / "b.h5ad", shard_cells=16, duplicates=POLICY))
    (report,) = result.reports
    assert report.dropped == {"duplicate of a cell in a": 10}
    assert report.cells_out == 30
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


def test_of_two_ingestions_at_once_each_shared_cell_is_kept_once(tmp_path: Path) -> None:
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    first = make_adata(30, seed=1)
    second = overlapping(10, 2, shared=15, of=first)
    write(first, tmp_path / "a.h5ad")
    write(second, tmp_path / "b.h5ad")
    jobs = [config(tmp_path / "atlas", tmp_path / f"{name}.h5ad", duplicates=POLICY) for name in "ab"]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        results = [future.result() for future in [pool.submit(ingest, job) for job in jobs]]
    assert sorted(result.snapshot for result in results) == [1, 2]
    assert Atlas.open(tmp_path / "atlas").snapshot().n_cells == 40
    hashes = Atlas.open(tmp_path / "atlas").snapshot().cells(["content_hash"]).column(0).to_pylist()
    assert len(set(hashes)) == 40
