"""Duplicates at length: races of two processes, and a data set of many cells against an index of many."""

from __future__ import annotations

import json
import resource
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from cellmill.atlas import Atlas, ShardEntry
from cellmill.atlas.overlay import read_overlay
from cellmill.ingestion import ingest
from cellmill.ingestion.config import DuplicateConfig
from cellmill.ingestion.duplicates import find_duplicates
from cellmill.storage import Storage
from tests.ingestion.cells import config, make_adata, write
from tests.ingestion.metadata import metadata_shard
from tests.ingestion.test_duplicates import POLICY, check_each_once, overlapping

pytestmark = pytest.mark.soak

SEEDS = 30
RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
N, SHARD = 1_000_000, 65_536


def test_of_two_processes_at_once_each_cell_is_kept_once(tmp_path: Path) -> None:
    first_was_first = 0
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for seed in range(SEEDS):
            first = make_adata(30, seed=10 * seed)
            second = overlapping(10, 10 * seed + 1, shared=15, of=first)
            atlas = tmp_path / f"atlas{seed}"
            paths = [write(first, tmp_path / f"a{seed}.h5ad"), write(second, tmp_path / f"b{seed}.h5ad")]
            jobs = [config(atlas, path, duplicates=POLICY, shard_cells=8) for path in paths[:: 1 - 2 * (seed % 2)]]
            results = [future.result() for future in [pool.submit(ingest, job) for job in jobs]]
            assert sorted(result.snapshot for result in results) == [1, 2]
            first_was_first += results[0].snapshot == 1
            check_each_once(Atlas.open(atlas), 40)
    result = {"seeds": SEEDS, "first_started_was_first": first_was_first, "cells_twice": 0}
    (RESULTS / "duplicate_races.json").write_text(json.dumps(result) + "\n")


def shards(storage: Storage, dataset: str, hashes: np.ndarray) -> list[ShardEntry]:
    return [
        metadata_shard(storage, dataset, f"{start}", hashes[start : start + SHARD])
        for start in range(0, len(hashes), SHARD)
    ]


def search(folder: str, percent: int) -> tuple[int, int, float]:
    """Return how many cells were known and how many were hidden wrongly, and the peak memory in GB."""
    storage, rng = Storage.open(folder), np.random.default_rng(percent)
    known = rng.integers(0, 2**64, (N, 2), dtype=np.uint64)
    stay = find_duplicates(storage, shards(storage, "a", known), [], [], DuplicateConfig()).entries
    fresh = rng.integers(0, 2**64, (N, 2), dtype=np.uint64)
    again = np.zeros(N, bool)
    again[rng.choice(N, N * percent // 100, replace=False)] = True
    fresh[again] = known[again]
    found = find_duplicates(storage, shards(storage, "b", fresh), stay, [], DuplicateConfig())
    hidden = np.zeros(N, bool)
    for entry in found.entries:
        hidden[int(entry.digest) + read_overlay(storage, entry).hidden] = True
    return int(again.sum()), int((hidden != again).sum()), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def test_all_are_found_and_no_other(tmp_path: Path) -> None:
    rows = []
    for percent in (0, 10, 50):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            known, wrong, peak = pool.submit(search, str(tmp_path / f"{percent}"), percent).result()
        rows.append({"cells": N, "known": known, "wrong": wrong, "peak_gb": round(peak, 3)})
    (RESULTS / "duplicates.json").write_text(json.dumps(rows) + "\n")
    assert all(row["wrong"] == 0 and row["peak_gb"] < 1 for row in rows)
