from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from cellmill.errors import ConfigError, ModelError
from cellmill.training.model import CellModel, Encoded, ModelConfig, TorchBatch
from tests.training.model.packs import Pack, make_pack

SHAPES = [(5, 4), (3, 0), (1, 6), (5, 4), (9, 2)]


def make_model(**changes: Any) -> CellModel:
    torch.manual_seed(0)
    defaults = {"n_tokens": 40, "d_model": 16, "n_layers": 2, "n_heads": 2, "d_ff": 24}
    return CellModel(ModelConfig.model_validate({**defaults, **changes})).double().eval()


def encode(model: CellModel, pack: Pack, **options: Any) -> Encoded:
    encoded: Encoded = model(TorchBatch.from_packed(pack), **options)
    return encoded


def hidden(model: CellModel, pack: Pack) -> Tensor:
    """Return the outputs of all tokens in the order of the pack."""
    encoded = encode(model, pack)
    return encoded.batch.to_packed_order(encoded.hidden)


def near(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


@pytest.fixture(params=["post", "pre"])
def model(request: pytest.FixtureRequest) -> CellModel:
    return make_model(norm=request.param)


def test_order_of_tokens_in_a_cell_does_not_matter(model: CellModel) -> None:
    pack = make_pack([(6, 5)] * 2)
    rows = np.arange(22)
    rows[1:6], rows[6:11] = [3, 5, 1, 4, 2], [8, 10, 6, 7, 9]
    near(hidden(model, pack.permute(rows)), hidden(model, pack)[rows])


def test_a_cell_does_not_depend_on_its_batch(model: CellModel) -> None:
    pack = make_pack(SHAPES)
    together = hidden(model, pack)
    cells = encode(model, pack).cell
    for i in range(len(SHAPES)):
        near(hidden(model, pack.select([i])), together[pack.cell(i)])
        near(encode(model, pack.select([i])).cell[0], cells[i])
    order = [3, 1, 4, 0, 2]
    near(encode(model, pack.select(order)).cell, cells[order])


def test_a_generative_token_is_seen_by_itself_alone(model: CellModel) -> None:
    pack = make_pack([(4, 3), (4, 3), (2, 5)])
    before = hidden(model, pack)
    changed = pack.gene.copy()
    row = 5
    changed[row] = (changed[row] - 7) % 32 + 8
    after = hidden(model, replace(pack, gene=changed))
    others = np.arange(len(changed)) != row
    near(after[others], before[others])
    assert (after[row] - before[row]).abs().max() > 1e-3


def test_values_of_generative_tokens_never_enter(model: CellModel) -> None:
    for binned in (True, False):
        pack = make_pack(SHAPES, binned=binned)
        value = pack.value.copy()
        value[pack.is_gen] = 1
        near(hidden(model, replace(pack, value=value)), hidden(model, pack))


def test_perceptual_values_reach_every_token_of_the_cell(model: CellModel) -> None:
    pack = make_pack([(4, 3), (4, 3)])
    value = pack.value.copy()
    value[2] = value[2] % 50 + 1
    moved = (hidden(model, replace(pack, value=value)) - hidden(model, pack)).abs().amax(-1)
    assert (moved[:7] > 1e-6).all()
    assert (moved[7:] == 0).all()


def test_flash_and_dense_models_agree_in_outputs_and_gradients() -> None:
    pack = make_pack(SHAPES)
    results = []
    for attention in ("flash", "sdpa"):
        model = make_model(attention=attention)
        encoded = encode(model, pack, readout="targets")
        loss = model.decode_values(encoded).square().sum() + model.decode_from_cell(encoded).square().sum()
        loss.backward()
        results.append([loss, *(p.grad for p in model.parameters() if p.grad is not None)])
    for a, b in zip(*results, strict=True):
        near(a, b)


@pytest.mark.parametrize("masked", [False, True])
def test_reading_less_gives_the_same_rows(model: CellModel, masked: bool) -> None:
    pack = make_pack(SHAPES)
    if masked:
        where = ~pack.is_gen & (np.arange(len(pack.gene)) % 3 == 1)
        where[pack.cu_seqlens[:-1]] = False
        pack = replace(pack, masked=where)
    whole, some, none = (encode(model, pack, readout=r) for r in ("all", "targets", "cell"))
    near(some.hidden, whole.hidden[whole.batch.targets])
    near(some.cell, whole.cell)
    near(none.cell, whole.cell)
    near(model.decode_values(some), model.decode_values(whole)[whole.batch.targets])
    near(model.decode_from_cell(some), model.decode_from_cell(whole)[whole.batch.targets])
    assert none.hidden.shape == (0, 16)


def test_gradients_are_the_same_whatever_is_read(model: CellModel) -> None:
    pack = make_pack(SHAPES)
    grads = []
    for readout in ("all", "cell"):
        model.zero_grad()
        encode(model, pack, readout=readout).cell.square().sum().backward()
        grads.append([torch.zeros(()) if p.grad is None else p.grad.clone() for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        near(a, b)


def test_masked_tokens_have_the_mask_value_and_stay_keys(model: CellModel) -> None:
    pack = make_pack([(5, 0)], binned=False)
    masked = np.array([False, True, False, False, False])
    value = pack.value.copy()
    value[1] = -1.0
    near(hidden(model, replace(pack, masked=masked)), hidden(model, replace(pack, value=value)))


@pytest.mark.parametrize("encoder", ["continuous", "category"])
def test_table_of_bins_equals_encoding_every_token(encoder: str) -> None:
    model = make_model(value_encoder=encoder)
    pack = make_pack([(5, 0), (7, 0)])
    numbers = torch.from_numpy(pack.value.astype(np.float64))
    numbers[torch.from_numpy(pack.cu_seqlens[:-1]).long()] = -2.0
    x = model.encoder(torch.from_numpy(pack.gene).long()) + model.value_encoder(numbers)
    near(model.embed(TorchBatch.from_packed(pack)).tokens, x)


def test_bins_as_floats_equal_bins_as_integers(model: CellModel) -> None:
    pack = make_pack(SHAPES)
    near(hidden(model, replace(pack, value=pack.value.astype(np.float32))), hidden(model, pack))


def test_cell_prompt_replaces_the_input_of_cls(model: CellModel) -> None:
    pack = make_pack(SHAPES)
    batch = TorchBatch.from_packed(pack)
    embedded = model.embed(batch)
    prompt = torch.randn(len(SHAPES), 16, dtype=torch.float64)
    replaced = embedded.tokens.clone()
    replaced[batch.layout.cls_rows] = batch.by_place(prompt)
    expected = model.encode(batch, replace(embedded, tokens=replaced))
    near(model(batch, prompt).hidden, expected.hidden)
    # Each prompt goes to its own cell, though the batch is laid out in another order.
    assert batch.order is not None
    prompt[2, 0] += 1
    moved = (model(batch, prompt).cell - expected.cell).abs().amax(-1) > 1e-6
    assert moved.tolist() == [False, False, True, False, False]


def test_conditions_are_added_and_zero_means_none() -> None:
    model = make_model(n_conditions=2)
    pack = make_pack(SHAPES)
    none = hidden(model, pack)
    condition = np.zeros(len(pack.gene), np.uint16)
    near(hidden(model, replace(pack, condition=condition)), none)
    condition[3] = 2
    assert (hidden(model, replace(pack, condition=condition)) - none).abs().max() > 1e-3
    condition[3] = 3
    with pytest.raises(ModelError, match="condition 3"):
        hidden(model, replace(pack, condition=condition))
    with pytest.raises(ModelError, match="condition 3"):
        hidden(make_model(), replace(pack, condition=condition))


def test_labels_enter_at_the_decoders_only() -> None:
    model = make_model(n_batch_labels=3, n_modalities=2)
    modality = np.arange(40) % 2
    batch_label = np.array([0, 1, 2, 0, 1], np.int32)
    pack = replace(make_pack(SHAPES), labels={"batch": batch_label})
    encoded: Encoded = model(TorchBatch.from_packed(pack, token_modality=modality))
    batch = encoded.batch
    assert model.batch_encoder is not None
    assert model.mod_encoder is not None
    extra = model.batch_encoder(torch.from_numpy(batch_label).long()[batch.token_cell()])
    extra = extra + model.mod_encoder(batch.genes[batch.gene_row] % 2)
    near(model.decode_values(encoded), model.decoder(torch.cat([encoded.hidden, extra], -1)))
    assert model.mvc_decoder is not None
    query = model.mvc_decoder.query(encoded.gene_embedding)
    context = torch.cat([encoded.cell[batch.token_cell()], extra], -1)
    near(model.decode_from_cell(encoded), ((query @ model.mvc_decoder.W.weight.T) * context).sum(-1))
    with pytest.raises(ConfigError, match="batch labels"):
        model.decode_values(encode(model, replace(pack, labels={})))
    with pytest.raises(ConfigError, match="modalities"):
        model.decode_values(encode(model, pack))
    unknown = np.array([0, 1, -1, 0, 1], np.int32)
    with pytest.raises(ConfigError, match="1 of 5 cells"):
        model.decode_values(model(TorchBatch.from_packed(replace(pack, labels={"batch": unknown}))))


def test_identity_projection_of_generative_tokens() -> None:
    pack = make_pack([(4, 3)])
    shared, identity = make_model(n_layers=1), make_model(n_layers=1, gen_out_proj="identity")
    a, b = hidden(shared, pack), hidden(identity, pack)
    near(a[:4], b[:4])
    assert (a[4:] - b[4:]).abs().max() > 1e-3
    out_proj = shared.get_submodule("transformer_encoder.layers.0.self_attn.out_proj")
    assert isinstance(out_proj, torch.nn.Linear)
    torch.nn.init.eye_(out_proj.weight)
    torch.nn.init.zeros_(out_proj.bias)
    near(hidden(shared, pack)[4:], b[4:])


def test_training_with_dropout_differs_and_evaluating_does_not() -> None:
    model = make_model(dropout=0.3)
    pack = make_pack(SHAPES)
    near(hidden(model, pack), hidden(model, pack))
    model.train()
    assert (hidden(model, pack) - hidden(model, pack)).abs().max() > 1e-3


def test_layers_are_initialised_independently() -> None:
    weights = make_model().state_dict()
    first, second = (weights[f"transformer_encoder.layers.{i}.linear1.weight"] for i in (0, 1))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("readout", ["all", "targets", "cell"])
def test_a_batch_without_cells_gives_zero_gradients(readout: Literal["all", "targets", "cell"]) -> None:
    model = make_model(n_classes=3)
    encoded = encode(model, make_pack([]), readout=readout)
    loss = model.classify(encoded.cell).sum() + model.decode_values(encoded).sum()
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_what_the_model_does_not_know_is_refused() -> None:
    pack = make_pack(SHAPES)
    with pytest.raises(ModelError, match="token 39"):
        encode(make_model(n_tokens=39), replace(pack, gene=np.maximum(pack.gene, 39)))
    with pytest.raises(ModelError, match="bin 50"):
        encode(make_model(n_bins=50), replace(pack, value=np.maximum(pack.value, 50)))
    with pytest.raises(ModelError, match="not binned"):
        encode(make_model(value_encoder="category"), make_pack(SHAPES, binned=False))
    with pytest.raises(ConfigError, match="classifier"):
        make_model().classify(torch.zeros(1, 16))
    with pytest.raises(ConfigError, match="cell embedding"):
        make_model(mvc=False).decode_from_cell(encode(make_model(), pack))
    with pytest.raises(ConfigError, match="n_heads"):
        ModelConfig.preset("scgpt", n_tokens=100, n_heads=7)
