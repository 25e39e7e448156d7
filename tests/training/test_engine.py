"""ZeRO 0 to 3 against plain torch, and checkpoints across stages and numbers of ranks."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cellmill.training import checkpoint
from cellmill.training.engine import Engine, prepare_process
from cellmill.training.schedule import OptimizerConfig
from tests.training.spread import folder_of, run_ranks

CONFIG = OptimizerConfig(name="adamw", lr=1e-2, weight_decay=0.01, clip=1.0)
STEPS, HALF, CELLS = 6, 3, 12


class Toy(nn.Module):
    """Sizes that no number of ranks divides, a parameter at the root, a frozen one and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(7, 11), nn.Linear(11, 3)
        self.scale = nn.Parameter(torch.randn(3))
        self.fixed = nn.Parameter(torch.randn(3), requires_grad=False)
        self.register_buffer("shift", torch.randn(3))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        out = self.second(torch.relu(self.first(x))) * self.scale + self.fixed + self.shift
        loss: Tensor = ((out - y) ** 2).sum()
        return loss


def cells(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(CELLS, 7, generator=generator), torch.randn(CELLS, 3, generator=generator)


def train(engine: Engine, steps: range, rank: int, world_size: int, parts: int) -> float:
    norm = 0.0
    for step in steps:
        x, y = (tensor[rank::world_size] for tensor in cells(step))
        for part in range(parts):
            engine.backward(engine(x[part::parts], y[part::parts]) / CELLS)
        norm = engine.step(CONFIG.lr * min(1.0, (step + 1) / 4))
    return norm


def reference() -> tuple[dict[str, Tensor], float]:
    """Plain torch on one process: the same steps with the textbook calls."""
    module = Toy()
    optimizer = torch.optim.AdamW(
        [p for p in module.parameters() if p.requires_grad], lr=CONFIG.lr, weight_decay=CONFIG.weight_decay
    )
    norm = torch.zeros(())
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = CONFIG.lr * min(1.0, (step + 1) / 4)
        optimizer.zero_grad()
        (module(*cells(step)) / CELLS).backward()
        norm = nn.utils.clip_grad_norm_(module.parameters(), CONFIG.clip)
        optimizer.step()
    return dict(module.named_parameters()), float(norm)


def state_of(engine: Engine) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in engine.state()}


def save(engine: Engine, folder: Path, steps: int) -> None:
    checkpoint.save(folder, engine.state(), steps=steps, position={}, config={}, plan={}, skipped={}, keep=1)


def load(engine: Engine, folder: Path) -> int:
    found = checkpoint.newest(folder)
    assert found is not None
    with found.tensors() as tensors:
        engine.load_state(tensors, steps=found.marker.steps)
    return found.marker.steps


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def check_against(expected: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    for name, tensor in expected.items():
        torch.testing.assert_close(state[f"weights/{name}"], tensor.detach(), rtol=1e-5, atol=1e-6)


def check_stage(rank: int, world_size: int, stage: int, folder: Path) -> None:
    expected, expected_norm = reference()
    for parts in (1, 3):
        whole = Engine(Toy(), CONFIG, zero_stage=stage)
        norm = train(whole, range(STEPS), rank, world_size, parts)
        check_against(expected, state_of(whole))
        assert norm == pytest.approx(expected_norm, rel=1e-4)
    first = Engine(Toy(), CONFIG, zero_stage=stage)
    train(first, range(HALF), rank, world_size, 3)
    save(first, folder_of(folder, world_size, stage), HALF)
    second = Engine(Toy(), CONFIG, zero_stage=stage)
    train(second, range(1), rank, world_size, 1)  # whatever was there before, loading replaces all of it
    assert load(second, folder_of(folder, world_size, stage)) == HALF
    train(second, range(HALF, STEPS), rank, world_size, 3)
    assert same(state_of(second), state_of(whole)), f"stage {stage} is not bit-equal after resuming"


def check_ranks(rank: int, folder: Path) -> None:
    for stage in range(4):
        check_stage(rank, 2, stage, folder)


def test_every_stage_and_any_number_of_ranks(tmp_path: Path) -> None:
    prepare_process()
    for stage in (0, 1, 3):
        check_stage(0, 1, stage, tmp_path)
    run_ranks(check_ranks, 2, tmp_path)
    # What two ranks wrote at stage 3, one rank goes on with at stage 1.
    engine = Engine(Toy(), CONFIG, zero_stage=1)
    assert load(engine, folder_of(tmp_path, 2, 3)) == HALF
    train(engine, range(HALF, STEPS), 0, 1, 1)
    check_against(reference()[0], state_of(engine))
