"""Tokenising happens where there are CPUs for it, and packed arrays alone cross to the node with the trainer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cellmill.atlas import Atlas
from cellmill.stream import Stream, StreamConfig
from cellmill.tokens import Tokeniser
from tests.platform.atlas.builders import add_shard, random_counts
from tests.platform.stream.two_nodes import TOKENS, digest


@pytest.mark.slow
@pytest.mark.ray
def test_cells_are_tokenised_on_the_node_without_trainers(tmp_path: Path) -> None:
    atlas = Atlas.create(tmp_path / "atlas")
    atlas.commit([add_shard(atlas, name, random_counts(4096, 1200, seed=i)) for i, name in enumerate(["one", "two"])])
    nodes = tmp_path / "nodes"
    nodes.mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.platform.stream.two_nodes", atlas.url, str(nodes)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.strip().splitlines()[-1])

    here = Stream(atlas.snapshot().select(), Tokeniser(TOKENS), StreamConfig(batch_size=256))
    assert told["digest"] == digest(here.epoch(0))
    assert len(told["stored"]) == 2
    (data_node,) = told["made"]
    assert data_node != told["trainer"]
    # What crossed is the packed batches, once, with a fifth for what so few bring along; not the counts they came from.
    assert told["packed"] <= told["stored"][told["trainer"]] < 1.2 * told["packed"]
    assert told["stored"][data_node] < 1.2 * told["packed"]
    assert 3 * told["packed"] < told["made"][data_node]
