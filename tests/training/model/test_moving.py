"""Batches on their way to a device: one copy, and nothing left to copy later."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import fields, replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from cellmill.training.model import CellModel, ModelConfig, TorchBatch, moving
from cellmill.training.model.layout import Queries
from cellmill.training.model.moving import move
from cellmill.training.objectives import ClassificationObjective, GenerativeObjective, Objective
from tests.training.model.packs import make_pack

ELSEWHERE = torch.device("meta")
"""Stands for a GPU: what is made there by mistake has no values, and mixing it with what has is an error."""
SHAPES = [(5, 4), (3, 0), (1, 6), (5, 4)]


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Let copies stay on the CPU, in memory of their own, and note them."""
    made: list[Tensor] = []

    def copy(host: Tensor, device: torch.device) -> Tensor:
        assert device == ELSEWHERE
        made.append(host.clone())
        return made[-1]

    monkeypatch.setattr(moving, "copy_to", copy)
    return made


def tensors_of(batch: TorchBatch) -> Iterator[Tensor]:
    for item in fields(batch):
        if isinstance(value := getattr(batch, item.name), Tensor):
            yield value
    yield from (label.ids for label in batch.labels.values())
    for plan in batch.layout._plans.values():
        yield from (plan.first, *plan.own)
    yield batch.layout.cls_rows


def packs() -> list[Any]:
    plain = make_pack(SHAPES)
    labelled = replace(make_pack([(4, 3)] * 3, seed=1), labels={"class": np.array([1, -1, 0], np.int32)})
    masked = np.zeros(28, bool)
    masked[[2, 10]] = True
    conditions = np.arange(28, dtype=np.uint16) % 3
    return [
        plain,
        labelled,
        replace(plain, masked=masked, condition=conditions),
        make_pack(SHAPES, binned=False),
        make_pack([]),
    ]


def test_all_micro_batches_of_a_step_are_one_copy(copies: list[Tensor]) -> None:
    here = [TorchBatch.from_packed(pack) for pack in packs()]
    for batch in here:
        batch.prepare("targets", "flash-cuda")
    there = move(here, ELSEWHERE).arrive()
    (buffer,) = copies
    inside = range(buffer.data_ptr(), buffer.data_ptr() + buffer.nbytes)
    for one, other in zip(here, there, strict=True):
        assert other.layout.device == ELSEWHERE
        assert one.layout.device == torch.device("cpu")
        for a, b in zip(tensors_of(one), tensors_of(other), strict=True):
            assert torch.equal(a, b)
            assert a.dtype == b.dtype
            assert b.numel() == 0 or b.data_ptr() in inside
            assert b.data_ptr() % 8 == 0


@pytest.mark.parametrize(
    ("objective", "readout", "which"),
    [
        (GenerativeObjective(), "targets", [0, 2, 3]),
        (ClassificationObjective("class"), "cell", [1]),
    ],
)
@pytest.mark.parametrize("attention", ["flash", "sdpa"])
def test_a_pass_over_a_moved_batch_copies_nothing_more(
    copies: list[Tensor],
    objective: Objective,
    readout: Queries,
    which: list[int],
    attention: Literal["flash", "sdpa"],
) -> None:
    torch.manual_seed(0)
    shape = {"n_tokens": 40, "d_model": 16, "n_layers": 2, "n_heads": 2, "d_ff": 24, "n_classes": 2, "n_conditions": 3}
    config = ModelConfig.model_validate({**shape, "attention": attention})
    for pack in (packs()[i] for i in which):
        model = CellModel(config)
        other = deepcopy(model)
        batch = TorchBatch.from_packed(pack)
        wanted = objective(model, batch, 2000)
        wanted.loss_sum.backward()
        moving_batch = TorchBatch.from_packed(pack)
        moving_batch.prepare(readout, "flash-cpu" if attention == "flash" else "sdpa")
        (moved,) = move([moving_batch], ELSEWHERE).arrive()
        before = len(copies)
        found = objective(other, moved, 2000)
        found.loss_sum.backward()
        assert len(copies) == before
        assert torch.equal(found.loss_sum, wanted.loss_sum)
        for a, b in zip(model.parameters(), other.parameters(), strict=True):
            assert (a.grad is None) == (b.grad is None)
            assert a.grad is None or b.grad is None or torch.equal(a.grad, b.grad)


def test_variable_length_kernels_find_theirs_ready(copies: list[Tensor]) -> None:
    batch = TorchBatch.from_packed(make_pack(SHAPES))
    batch.prepare("targets", "flash-cuda")
    (moved,) = move([batch], ELSEWHERE).arrive()
    for queries in ("all", "targets"):
        plan, other = batch.layout.plan(queries), moved.layout.plan(queries)
        assert torch.equal(plan.segments.query_offsets, other.segments.query_offsets)
        assert torch.equal(plan.segments.key_offsets, other.segments.key_offsets)
        assert other.segments.key_offsets.dtype == torch.int32
        assert plan.unseen is None
        assert other.unseen is None
    assert moved.layout.plan("cell").first.device == ELSEWHERE  # nobody asked for it: it is made there


def test_on_the_cpu_nothing_is_copied(copies: list[Tensor]) -> None:
    batch = TorchBatch.from_packed(make_pack(SHAPES))
    assert move([batch], torch.device("cpu")).arrive()[0] is batch
    assert not copies
