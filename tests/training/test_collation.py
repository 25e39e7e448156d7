"""Steps that are made ready ahead: the same batches in the same order, one copy each, none before a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from cellmill.tokens import PackedBatch, TokenConfig, Tokeniser
from cellmill.training.collation import Collator, Upcoming
from cellmill.training.engine import Engine, prepare_process
from cellmill.training.loop import LoopConfig, run_loop
from cellmill.training.model import CellModel, ModelConfig, moving
from cellmill.training.task import Trainee, build_task
from tests.platform.tokens.builders import random_block
from tests.training.small import N_GENES
from tests.training.test_loop import OPTIMIZER, PER_EPOCH, Fixed, split

SHAPE = ModelConfig(n_tokens=8 + N_GENES, d_model=16, n_layers=1, n_heads=2, d_ff=16)


def batches(n: int) -> list[PackedBatch]:
    packed = Tokeniser(TokenConfig(max_genes=20, prompt_ratios=(0.5,))).tokenise(
        random_block(6 * n, 40), seed=0, epoch=0
    )
    return [packed.part(6 * i, 6 * i + 6) for i in range(n)]


def test_one_copy_a_step_and_the_order_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    copies: list[int] = []

    def copy(host: Tensor, device: torch.device) -> Tensor:
        copies.append(host.nbytes)
        return host.clone()

    monkeypatch.setattr(moving, "copy_to", copy)
    upcoming = Upcoming(iter(batches(4)), lambda b: split(b, 3), Collator(torch.device("meta"), "targets", SHAPE))
    seen: list[int] = []
    for number in range(4):
        upcoming.prepare()
        upcoming.prepare()
        assert len(copies) == number + 1
        parts = upcoming.take()
        assert parts is not None
        assert len(parts) == 3
        seen += np.sort(np.concatenate([part.cell_id for part in parts])).tolist()
    assert upcoming.take() is None
    assert seen == [cell for batch in batches(4) for cell in np.sort(batch.cell_id).tolist()]


class Counted(Fixed):
    """Tells how many steps were asked for."""

    asked = 0

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[PackedBatch]:
        for packed in super().epoch(epoch, start_step):
            self.asked += 1
            yield packed


def test_the_next_step_is_made_while_one_is_computed_but_not_before_a_checkpoint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepare_process()
    source, task = Counted(0, 1), build_task("generate")
    engine = Engine(Trainee(CellModel(SHAPE), task), OPTIMIZER, zero_stage=0)
    at_step: list[int] = []
    at_save: list[tuple[int, int]] = []
    plain = engine.step

    def step(lr: float) -> float:
        at_step.append(source.asked)
        return plain(lr)

    monkeypatch.setattr(engine, "step", step)
    settings = LoopConfig(total_steps=6, optimizer=OPTIMIZER, seed=0, log_every=1, save_every=2)
    run_loop(
        engine,
        source,
        lambda packed: split(packed, 2),
        Collator(engine.device, task.readout, SHAPE),
        task,
        settings,
        start=0,
        log=lambda metrics, step: None,
        save=lambda step: at_save.append((step, source.asked)),
    )
    assert PER_EPOCH == 3
    # Steps 2, 4 and 6 are saved, and 3 is the last of its epoch.
    assert at_step == [2, 2, 3, 4, 6, 6]
    assert at_save == [(2, 2), (4, 4), (6, 6)]
