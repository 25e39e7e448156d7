from pathlib import Path

import numpy as np
import pytest

from cellmill.atlas import Atlas
from cellmill.atlas.overlay import Overlay, write_overlay
from cellmill.errors import IntegrityError
from tests.platform.atlas.builders import small_atlas


def hide(atlas: Atlas, dataset: str, hidden: list[int], duplicate: list[int]) -> None:
    (entry,) = [e for e in atlas.snapshot().shards if e.dataset == dataset]
    overlay = Overlay(np.array(hidden, np.uint32), np.array(duplicate, np.uint32))
    digest = write_overlay(atlas.storage, dataset, overlay)
    atlas.commit([entry.model_copy(update={"overlay": digest, "n_cells": entry.n_rows - len(hidden)})])


def test_hidden_rows_are_gone_and_duplicates_marked_from_that_snapshot_on(tmp_path: Path) -> None:
    atlas = small_atlas(tmp_path)
    hide(atlas, "alpha", [0, 59], [3, 4])
    snapshot = atlas.snapshot()
    assert (snapshot.n_cells, atlas.snapshot(1).n_cells) == (98, 100)
    selection = snapshot.select()
    assert selection.n_cells == 98
    rows = selection.rows(0)
    assert rows is not None
    assert rows.tolist() == list(range(1, 59))
    assert selection.rows(1) is None
    marked = snapshot.cells(["row", "is_duplicate"], where="is_duplicate")
    assert marked.to_pydict() == {"row": [3, 4], "is_duplicate": [True, True]}
    assert snapshot.select("age < 2").cells(["age"]).column(0).to_pylist() == [1]
    assert atlas.verify().sound


def test_a_damaged_overlay_is_found(tmp_path: Path) -> None:
    atlas = small_atlas(tmp_path)
    hide(atlas, "alpha", [1], [])
    (path,) = (tmp_path / "overlays").rglob("*.parquet")
    other = Overlay(np.array([2], np.uint32), np.array([], np.uint32))
    digest = write_overlay(atlas.storage, "alpha", other)
    path.write_bytes((path.parent / f"{digest}.parquet").read_bytes())
    assert not atlas.verify().sound
    with pytest.raises(IntegrityError, match="overlay"):
        atlas.snapshot().select()
