"""A small atlas of three data sets with different genes and sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cellmill.atlas import Atlas
from tests.platform.atlas.builders import add_shard, random_counts

SIZES = {"one": 600, "two": 250, "three": 77}


def make_atlas(path: Path) -> Atlas:
    atlas = Atlas.create(path)
    entries = []
    for i, (name, n) in enumerate(SIZES.items()):
        counts = random_counts(n, 60, seed=i, largest=300 if name == "two" else 9)
        kinds = np.random.default_rng(i).choice(["A", "B", "C"], n)
        entries.append(add_shard(atlas, name, counts, genes=range(20 * i, 20 * i + 60), obs={"kind": kinds}))
    atlas.commit(entries)
    return atlas


@pytest.fixture(scope="session")
def stream_atlas(tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    return make_atlas(tmp_path_factory.mktemp("stream") / "atlas")
