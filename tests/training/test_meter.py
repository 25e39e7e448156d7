"""Metrics of a run: what ranks wait for each other is told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cellmill.stream import straggler_ratio, waste
from cellmill.training.meter import Meter
from cellmill.training.objectives import ObjectiveResult
from tests.training.spread import run_ranks

PASSES = np.array([[[70, 60], [30, 50]], [[0, 0], [20, 0]], [[80, 80], [80, 80]]])
"""Tokens by step, rank and forward pass; the second step is a short one."""


def measure(rank: int, folder: Path) -> None:
    meter = Meter(torch.device("cpu"))
    for step in PASSES[:, rank].tolist():
        for tokens in step:
            meter.feed(ObjectiveResult(torch.tensor(2.0 * tokens), tokens, {}), n_cells=tokens // 10, n_tokens=tokens)
        meter.step(step)
    found = meter.read()
    (folder / f"{rank}.json").write_text(json.dumps(found))


def test_waiting_is_that_of_all_ranks(tmp_path: Path) -> None:
    run_ranks(measure, 2, tmp_path)
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    for found in ranks:
        assert found["loss"] == 2
        assert found["straggler_ratio"] == pytest.approx(straggler_ratio(PASSES.sum(axis=2)))
        assert found["micro_batch_waste"] == pytest.approx(waste(PASSES.reshape(-1, 2)))
        assert found["cells_per_second"] / found["tokens_per_second"] == pytest.approx(0.1)
