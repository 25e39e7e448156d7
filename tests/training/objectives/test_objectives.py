from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from cellmill.errors import ConfigError
from cellmill.training.model import CellModel, ModelConfig, TorchBatch
from cellmill.training.objectives import (
    ClassificationObjective,
    GenerativeConfig,
    GenerativeObjective,
    Objective,
    ObjectiveResult,
)
from tests.training.model.packs import Pack, make_pack

SHAPES = [(5, 4), (3, 0), (1, 6), (5, 4)]


def make_model(**changes: Any) -> CellModel:
    torch.manual_seed(0)
    defaults = {"n_tokens": 40, "d_model": 16, "n_layers": 2, "n_heads": 2, "d_ff": 24}
    return CellModel(ModelConfig.model_validate({**defaults, **changes})).double()


def labelled(ids: list[int]) -> Pack:
    return replace(make_pack(SHAPES), labels={"cell_type": np.array(ids, np.int32)})


def means(result: ObjectiveResult) -> dict[str, float]:
    return {name: float(total) / count for name, (total, count) in result.metrics.items()}


def test_generative_loss_is_the_sum_of_three_written_out_errors() -> None:
    model, batch = make_model(), TorchBatch.from_packed(make_pack(SHAPES))
    target = batch.target_value.double()
    first = model(batch)
    predicted = model.decode_values(first)[batch.targets]
    from_cell = model.decode_from_cell(first)[batch.targets]
    prompted = model.decode_values(model(batch, first.cell.detach()))[batch.targets]

    result = GenerativeObjective(GenerativeConfig(cell_prompt_after=3))(model, batch, 3)
    errors = [((x - target) ** 2).sum().item() for x in (predicted, from_cell, prompted)]
    assert result.count == 14
    assert result.loss_sum.item() == pytest.approx(sum(errors), rel=1e-5)
    found = means(result)
    assert [found[name] * 14 for name in ("gep", "gepc", "gen")] == pytest.approx(errors, rel=1e-5)
    assert found["mre"] == pytest.approx(((predicted - target).abs() / (target + 1e-6)).mean().item(), rel=1e-5)
    assert not any(total.requires_grad for total, _ in result.metrics.values())


def test_the_second_pass_waits_for_its_step_and_weights_weigh() -> None:
    model, batch = make_model(), TorchBatch.from_packed(make_pack(SHAPES))
    early = GenerativeObjective()(model, batch, 999)
    assert set(early.metrics) == {"gep", "gepc", "mre"}
    assert "gen" in GenerativeObjective()(model, batch, 1000).metrics
    config = GenerativeConfig(from_cell_weight=0.5, cell_prompt_weight=0)
    light = GenerativeObjective(config)(model, batch, 5000)
    expected = float(early.metrics["gep"][0]) + 0.5 * float(early.metrics["gepc"][0])
    assert light.loss_sum.item() == pytest.approx(expected, rel=1e-6)
    assert set(GenerativeObjective()(make_model(mvc=False), batch, 0).metrics) == {"gep", "mre"}


def test_the_second_pass_sends_no_gradient_into_the_first() -> None:
    batch = TorchBatch.from_packed(make_pack(SHAPES))
    model = make_model()
    embedded = model.embed(batch)
    first = model.encode(batch, embedded, readout="targets")
    prompt = first.cell.detach()
    second = model.decode_values(model.encode(batch, embedded, cell_prompt=prompt, readout="targets"))
    target = batch.target_value
    (second.float() - target).square().sum().backward()
    alone = [torch.zeros(()) if p.grad is None else p.grad.clone() for p in model.parameters()]

    model.zero_grad()
    with_second = GenerativeObjective(GenerativeConfig(cell_prompt_after=0, from_cell_weight=0))
    with_second(model, batch, 0).loss_sum.backward()
    both = [torch.zeros(()) if p.grad is None else p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    GenerativeObjective(GenerativeConfig(cell_prompt_weight=0, from_cell_weight=0))(model, batch, 0).loss_sum.backward()
    without = [torch.zeros(()) if p.grad is None else p.grad.clone() for p in model.parameters()]
    for a, b, c in zip(alone, without, both, strict=True):
        torch.testing.assert_close(a + b, c, rtol=1e-6, atol=1e-6)


def test_sums_of_micro_batches_add_up() -> None:
    model, pack = make_model(n_classes=3), labelled([0, -1, 2, 1])
    objectives: list[Objective] = [
        GenerativeObjective(GenerativeConfig(cell_prompt_after=0)),
        ClassificationObjective("cell_type"),
    ]
    for objective in objectives:
        whole = objective(model, TorchBatch.from_packed(pack), 0)
        parts = [objective(model, TorchBatch.from_packed(pack.select(c)), 0) for c in ([0, 2], [1, 3], [])]
        assert whole.count == sum(part.count for part in parts)
        assert whole.loss_sum.item() == pytest.approx(sum(part.loss_sum.item() for part in parts), rel=1e-6)
        for name, (total, count) in whole.metrics.items():
            assert float(total) == pytest.approx(sum(float(part.metrics[name][0]) for part in parts), rel=1e-6)
            assert count == sum(part.metrics[name][1] for part in parts)


def test_cross_entropy_counts_labelled_cells_only() -> None:
    model, batch = make_model(n_classes=3), TorchBatch.from_packed(labelled([0, -1, 2, 1]))
    logits = model.classify(model(batch).cell).detach().numpy()
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    expected = -(log_p[0, 0] + log_p[2, 2] + log_p[3, 1])
    correct = (logits.argmax(1) == [0, -1, 2, 1]).sum()
    result = ClassificationObjective("cell_type")(model, batch, 0)
    assert result.count == 3
    assert result.loss_sum.item() == pytest.approx(expected, rel=1e-5)
    assert means(result) == pytest.approx({"cross_entropy": expected / 3, "accuracy": correct / 3}, rel=1e-5)


def test_wrong_labels_are_refused() -> None:
    batch = TorchBatch.from_packed(labelled([0, -1, 3, 1]))
    with pytest.raises(ConfigError, match="no label 'tissue'"):
        ClassificationObjective("tissue")(make_model(n_classes=3), batch, 0)
    with pytest.raises(ConfigError, match="beyond the 3 classes"):
        ClassificationObjective("cell_type")(make_model(n_classes=3), batch, 0)


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_a_small_model_learns_a_rule(norm: str) -> None:
    """The value of a generative gene equals that of one perceptual gene: the prompt must be read to learn it."""
    torch.manual_seed(0)
    model = CellModel(ModelConfig(n_tokens=12, d_model=32, n_layers=2, n_heads=2, d_ff=32, norm=norm, n_bins=4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    objective = GenerativeObjective(GenerativeConfig(cell_prompt_after=60))
    rng = np.random.default_rng(0)
    base = make_pack([(2, 1)] * 64, n_tokens=12)
    errors = []
    for step in range(120):
        number = rng.integers(1, 4, 64).astype(np.uint8)
        gene, value = np.tile([1, 8, 9], 64).astype(np.uint16), np.zeros(192, np.uint8)
        value[1::3] = value[2::3] = number
        result = objective(model, TorchBatch.from_packed(replace(base, gene=gene, value=value)), step)
        (result.loss_sum / result.count).backward()
        optimizer.step()
        optimizer.zero_grad()
        errors.append(means(result)["gep"])
    assert errors[-1] < 0.05 < errors[0]
