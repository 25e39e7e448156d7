"""Names and shapes of the parameters of a published checkpoint."""

from __future__ import annotations

import torch

from cellmill.training.model import CellModel, ModelConfig


def published_shapes() -> dict[str, tuple[int, ...]]:
    d = 512
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.embedding.weight": (60697, d),
        "flag_encoder.weight": (2, d),
        "value_encoder.linear1.weight": (d, 1),
        "value_encoder.linear1.bias": (d,),
        "decoder.fc.4.weight": (1, d),
        "decoder.fc.4.bias": (1,),
        "mvc_decoder.W.weight": (d, d),
    }
    norms = ["encoder.enc_norm", "value_encoder.norm"]
    squares = ["value_encoder.linear2", "decoder.fc.0", "decoder.fc.2", "mvc_decoder.gene2query"]
    for i in range(12):
        layer = f"transformer_encoder.layers.{i}"
        shapes[f"{layer}.self_attn.Wqkv.weight"] = (3 * d, d)
        shapes[f"{layer}.self_attn.Wqkv.bias"] = (3 * d,)
        squares += [f"{layer}.self_attn.out_proj", f"{layer}.linear1", f"{layer}.linear2"]
        norms += [f"{layer}.norm1", f"{layer}.norm2"]
    for name in norms:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (d,)
    for name in squares:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (d, d), (d,)
    return shapes


def test_the_scgpt_preset_has_the_published_tensors() -> None:
    with torch.device("meta"):
        model = CellModel(ModelConfig.preset("scgpt", n_tokens=60697))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes == published_shapes()
    assert len(shapes) == 163
    assert sum(p.numel() for p in model.parameters()) == 51_330_049


def test_other_published_names() -> None:
    with torch.device("meta"):
        names = CellModel(
            ModelConfig(n_tokens=10, d_model=8, n_layers=1, n_heads=1, n_batch_labels=2, n_modalities=2, n_classes=4)
        ).state_dict()
    for name in (
        "batch_encoder.embedding.weight",
        "batch_encoder.enc_norm.bias",
        "mod_encoder.embedding.weight",
        "cls_decoder._decoder.0.weight",
        "cls_decoder._decoder.2.weight",
        "cls_decoder._decoder.3.bias",
        "cls_decoder._decoder.5.bias",
        "cls_decoder.out_layer.weight",
    ):
        assert name in names
    assert names["mvc_decoder.W.weight"].shape == (16, 8)
    assert names["decoder.fc.0.weight"].shape == (8, 16)


def test_one_layer_equals_torchs_own_encoder_layer() -> None:
    torch.manual_seed(0)
    config = ModelConfig(n_tokens=10, d_model=16, n_layers=1, n_heads=4, d_ff=24)
    ours = CellModel(config).double().eval().transformer_encoder
    theirs = torch.nn.TransformerEncoderLayer(16, 4, 24, batch_first=True, dtype=torch.float64).eval()
    names = {"self_attn.in_proj_weight": "self_attn.Wqkv.weight", "self_attn.in_proj_bias": "self_attn.Wqkv.bias"}
    state = ours.layers[0].state_dict()
    theirs.load_state_dict({name: state[names.get(name, name)] for name in theirs.state_dict()})
    from tests.training.model.test_attention import make_layout

    x = torch.randn(3 * 7, 16, dtype=torch.float64)
    found = ours(x, make_layout([(7, 0)] * 3))
    torch.testing.assert_close(found.view(3, 7, 16), theirs(x.view(3, 7, 16)), rtol=1e-10, atol=1e-12)
