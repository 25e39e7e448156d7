"""Ingestions killed at any moment: the atlas stays whole, and the rerun ends where an undisturbed run does."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cellmill.atlas import Atlas
from cellmill.genes import load_table

pytestmark = pytest.mark.soak

SEEDS = 20
RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "killed_ingestion.json"
CHILD = """
import sys
from cellmill.ingestion import IngestConfig, ingest
print("ready", flush=True)
ingest(IngestConfig.model_validate({
    "atlas": sys.argv[2], "backend": "local", "shard_cells": 500, "task_memory_mb": 64,
    "sources": [{"path": sys.argv[1], "dataset": "cells"}],
}))
"""


def start(source: Path, atlas: Path) -> subprocess.Popen[str]:
    """Start an ingestion and return when its imports are done."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(source), str(atlas)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline().strip() == "ready"
    return child


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    counts = sparse.random(4000, 2000, density=0.1, format="csr", random_state=0)
    counts.data = rng.geometric(0.5, counts.nnz).astype(np.float32)
    genes = pd.DataFrame(index=load_table("human").ids[:2000])
    path = tmp_path_factory.mktemp("source") / "cells.h5ad"
    ad.AnnData(counts, var=genes).write_h5ad(path)
    return path


def test_a_killed_ingestion_loses_and_repeats_nothing(source: Path, tmp_path: Path) -> None:
    began = time.monotonic()
    whole = start(source, tmp_path / "whole")
    assert whole.wait() == 0
    seconds = time.monotonic() - began
    wanted = [(entry.digest, entry.checksum) for entry in Atlas.open(tmp_path / "whole").snapshot().shards]
    assert len(wanted) == 8
    killed = 0
    for seed in range(SEEDS):
        atlas = tmp_path / f"atlas{seed}"
        child = start(source, atlas)
        time.sleep(random.Random(seed).uniform(0, seconds))
        child.kill()
        killed += child.wait() != 0
        if (atlas / "atlas.json").exists():
            seen = Atlas.open(atlas).snapshot()
            assert [(entry.digest, entry.checksum) for entry in seen.shards] in ([], wanted)
            Atlas.open(atlas).verify().check()
        assert start(source, atlas).wait() == 0
        again = Atlas.open(atlas)
        assert [(entry.digest, entry.checksum) for entry in again.snapshot().shards] == wanted
        again.verify().check()
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps({"seeds": SEEDS, "killed": killed, "undisturbed_seconds": round(seconds, 2)}) + "\n")
    assert killed > SEEDS // 2
