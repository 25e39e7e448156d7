"""The loop: a global step is the same however its cells are spread over ranks and micro-batches."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from cellmill.errors import ConfigError
from cellmill.genes import N_SPECIALS
from cellmill.tokens import CellBlock, PackedBatch, TokenConfig, Tokeniser
from cellmill.training.collation import Collator
from cellmill.training.engine import Engine, prepare_process
from cellmill.training.loop import LoopConfig, run_loop
from cellmill.training.model import CellModel, ModelConfig
from cellmill.training.schedule import OptimizerConfig
from cellmill.training.task import Trainee, build_task
from tests.training.small import N_GENES, cells
from tests.training.spread import run_ranks

BATCH, PER_EPOCH, STEPS = 10, 3, 5
OPTIMIZER = OptimizerConfig(lr=3e-3, warmup=2)


class Fixed:
    """Twenty-three cells in steps of ten, dealt to ranks one by one; the last step is short."""

    steps_per_epoch = PER_EPOCH

    def __init__(self, rank: int, world_size: int) -> None:
        tokens = np.arange(N_SPECIALS, N_SPECIALS + N_GENES, dtype=np.uint32)
        counts = cells(23, [str(token) for token in tokens]).X.astype(np.uint32)
        self.block = CellBlock.from_csr(counts, tokens)
        self.rank, self.world_size = rank, world_size

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[PackedBatch]:
        tokeniser = Tokeniser(TokenConfig(max_genes=24, prompt_ratios=(0.25, 0.5)))
        for step in range(start_step, PER_EPOCH):
            chosen = np.arange(step * BATCH, min(23, (step + 1) * BATCH))[self.rank :: self.world_size]
            yield tokeniser.tokenise(self.block.take(chosen), seed=0, epoch=epoch)


def split(packed: PackedBatch, parts: int) -> list[PackedBatch]:
    return [packed.select(np.arange(packed.n_cells)[part::parts]) for part in range(parts)]


def train(rank: int, world_size: int, parts: int, *, lr: float = OPTIMIZER.lr, dropout: float = 0.0) -> list[float]:
    torch.manual_seed(0)
    config = ModelConfig(n_tokens=N_SPECIALS + N_GENES, d_model=16, n_layers=2, n_heads=2, d_ff=16, dropout=dropout)
    task = build_task("generate")
    engine = Engine(Trainee(CellModel(config), task), OPTIMIZER, zero_stage=1)
    lines: list[float] = []

    def log(metrics: Mapping[str, float], step: int) -> None:
        lines.extend([metrics["loss"], metrics["gen"], metrics["grad_norm"], metrics["lr"]])

    settings = LoopConfig(
        total_steps=STEPS,
        optimizer=OPTIMIZER.model_copy(update={"lr": lr}),
        seed=0,
        log_every=1,
        save_every=100,
    )
    run_loop(
        engine,
        Fixed(rank, world_size),
        lambda packed: split(packed, parts),
        Collator(engine.device, task.readout, config),
        task,
        settings,
        start=0,
        log=log,
        save=lambda step: saved.append(step),
    )
    return lines


saved: list[int] = []


def write_lines(rank: int, folder: Path) -> None:
    lines = train(rank, 2, 7)  # more parts than cells: some are empty on both ranks
    if rank == 0:
        (folder / "lines.json").write_text(json.dumps(lines))


def test_ranks_and_micro_batches_do_not_change_a_step(tmp_path: Path) -> None:
    prepare_process()
    saved.clear()
    alone = train(0, 1, 1)
    assert saved == [STEPS]
    assert len(alone) == 4 * STEPS
    run_ranks(write_lines, 2, tmp_path)
    np.testing.assert_allclose(json.loads((tmp_path / "lines.json").read_text()), alone, rtol=2e-4)


def test_the_same_seed_gives_the_same_losses_with_dropout() -> None:
    prepare_process()
    assert train(0, 1, 2, dropout=0.2) == train(0, 1, 2, dropout=0.2)


def test_divergence_is_an_error_and_leaves_no_checkpoint() -> None:
    prepare_process()
    saved.clear()
    with pytest.raises(ConfigError, match="diverged"):
        train(0, 1, 1, lr=1e30)
    assert saved == []
