"""Ranks whose cells differ in length make equally many forward passes."""

import json
from pathlib import Path
from typing import Any

from cellmill.config import parse_config
from cellmill.training.config import PretrainConfig
from cellmill.training.job import Cells, Job, _Source
from cellmill.training.model import ModelConfig
from tests.training.spread import run_ranks
from tests.training.test_pretraining import SETTINGS

CAPACITY = 190


def write_passes(rank: int, atlas: str, folder: Path) -> None:
    told: dict[str, Any] = {**SETTINGS, "panel": None, "atlas": atlas, "output": folder}
    told |= {"tokens": {"max_genes": 100_000}, "token_capacity": CAPACITY}
    config = parse_config(PretrainConfig, told, where="test")
    job = Job(folder, config, Cells(atlas, 1, None, config.tokens, None), "generate", ModelConfig(n_tokens=208), None)
    source = _Source(job.cells, job.stream(rank, 2), CAPACITY)
    passes = [[part.n_tokens for part in source.split(packed)] for packed in source.epoch(0)]
    own = [source.stream.micro_batch_count(packed, CAPACITY) for packed in source.epoch(0)]
    (folder / f"{rank}.json").write_text(json.dumps([passes, own]))


def test_all_ranks_make_as_many_passes_as_the_one_that_needs_most(atlas: str, tmp_path: Path) -> None:
    run_ranks(write_passes, 2, atlas, tmp_path)
    (one, needed), (other, needed_there) = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert [len(step) for step in one] == [len(step) for step in other] == list(map(max, needed, needed_there))
    assert needed != needed_there
    assert max(max(step) for step in one + other) <= CAPACITY
