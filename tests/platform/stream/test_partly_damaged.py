"""Shards of which some chunks are damaged: exactly those cells are lost whose own entries are in one of these."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cellmill.atlas import Atlas, open_shard
from cellmill.atlas.exporting import export_arrow
from cellmill.errors import IntegrityError
from cellmill.ingestion.linking import link
from tests.ingestion.cells import config
from tests.ingestion.test_linking import forget, messy, rechunked, write_store
from tests.platform.stream.conftest import make_atlas
from tests.platform.stream.test_losses import flip, stream
from tests.platform.stream.test_stream import content

ENTRIES = 400
"""Of a chunk."""
SETS = {"kind": "sets", "by": ["kind"], "size": 4}
BALANCED = {"kind": "balanced", "by": "kind", "epoch_cells": 1500}


def make(layout: str, folder: Path) -> tuple[Atlas, list[Path]]:
    """Return an atlas whose shards have many chunks, and files of its counts."""
    if layout == "anndata":
        store = rechunked(write_store(messy(n_cells=400), folder / "store.zarr"), ENTRIES)
        link(config(folder / "atlas", store, source={"obs": {"donor": "kind"}}, shard_cells=250))
        return Atlas.open(folder / "atlas"), [store / f"layers/counts/{name}/c/7" for name in ("indices", "data")]
    with pytest.MonkeyPatch.context() as patch:
        for module in ("layout", "writing", "chunk_writing", "arrow_writing"):
            patch.setattr(f"cellmill.atlas.{module}.CHUNK", ENTRIES)
        patch.setattr("cellmill.atlas.layout.CHUNKS_PER_SHARD", 8)
        atlas = make_atlas(folder / "zarr")
        if layout == "arrow":
            export_arrow(atlas.snapshot(), folder / "arrow")
            atlas = Atlas.open(folder / "arrow")
    entry = max(atlas.snapshot().shards, key=lambda entry: entry.n_cells)
    path = atlas.storage.local_path(entry.shard_path)
    return atlas, [path] if layout == "arrow" else [path / "X/indices/c/1", path / "X/data/c/2"]


def alone(atlas: Atlas) -> set[int]:
    """Return the cells that cannot be read one by one."""
    lost = set()
    for entry in atlas.snapshot().shards:
        shard = open_shard(atlas.storage, entry)
        cells = atlas.snapshot().cells(["cell_id", "row"], f"shard == '{entry.digest}'")
        for cell, row in zip(cells["cell_id"].to_pylist(), cells["row"].to_pylist(), strict=True):
            try:
                shard.gather([row], [row + 1])
            except IntegrityError:
                lost.add(cell)
    return lost


def epoch(atlas: Atlas, world: int, **changes: Any) -> tuple[list[list[int]], list[dict[int, Any]], int]:
    """Return the cells and the content of each global batch, and how many cells were skipped."""
    sources = [stream(atlas, rank=rank, world=world, **changes) for rank in range(world)]
    steps = list(zip(*(source.epoch(0) for source in sources), strict=True))
    cells = [sorted(int(cell) for part in parts for cell in part.cell_id) for parts in steps]
    told: list[dict[int, Any]] = [{} for _ in steps]
    if "sampling" not in changes:
        told = [{cell: what for part in parts for cell, what in content(part).items()} for parts in steps]
    return cells, told, sum(sum(source.skipped.values()) for source in sources)


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])


@pytest.mark.parametrize(
    ("layout", "harm"),
    [("zarr", flip), ("zarr", cut), ("zarr", Path.unlink), ("arrow", flip), ("anndata", flip)],
)
def test_groups_and_workers_do_not_decide_which_cells_are_lost(
    tmp_path: Path, layout: str, harm: Callable[[Path], None]
) -> None:
    atlas, files = make(layout, tmp_path)
    forget()
    whole = epoch(atlas, 1)
    for path in files:
        harm(path)
    lost = alone(atlas)
    every = {cell for batch in whole[0] for cell in batch}
    # Of a file that is cut or gone, all chunks are lost, but not those of other files.
    assert 0 < len(lost) < len(every) * (0.25 if harm is flip else 0.7)
    expected = [{cell: what for cell, what in batch.items() if cell not in lost} for batch in whole[1]]
    for world, group_cells, cpus in ((1, 20, 1), (1, 150, 2), (1, 16_384, 1), (2, 16_384, 2), (4, 60, 1)):
        forget()
        cells, told, skipped = epoch(atlas, world, group_cells=group_cells, data_cpus=cpus, prefetch=world)
        assert {cell for batch in cells for cell in batch} == every - lost
        assert (told, skipped) == (expected, len(lost))


@pytest.mark.parametrize("sampling", [SETS, BALANCED], ids=["sets", "balanced"])
def test_a_set_is_lost_that_has_lost_a_cell_and_a_draw_whose_cell_is_lost(
    tmp_path: Path, sampling: dict[str, Any]
) -> None:
    atlas, files = make("zarr", tmp_path)
    forget()
    whole = epoch(atlas, 1, sampling=sampling)[0]
    sets = [batch.cell_id.reshape(-1, 4) for batch in stream(atlas, sampling=SETS).epoch(0)]
    for path in files:
        flip(path)
    lost = alone(atlas)
    if sampling is SETS:
        left = [sorted(rows[~np.isin(rows, list(lost)).any(axis=1)].ravel().tolist()) for rows in sets]
    else:
        left = [[cell for cell in batch if cell not in lost] for batch in whole]
    for world, group_cells in ((1, 20), (1, 16_384), (2, 100)):
        forget()
        cells, _, skipped = epoch(atlas, world, group_cells=group_cells, sampling=sampling)
        assert cells == left
        assert skipped == sum(map(len, whole)) - sum(map(len, left)) > 0
