"""Batches and modalities reach the decoders from a configuration, are kept with the model, and embedding needs none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import torch

from cellmill.atlas import Atlas, read
from cellmill.config import parse_config
from cellmill.errors import ConfigError
from cellmill.genes import Feature, Vocabulary
from cellmill.models import ModelFolder
from cellmill.tokens import TokenConfig
from cellmill.training import FinetuneConfig, embed, finetune, pretrain
from cellmill.training.collation import Collator
from cellmill.training.decoder_labels import DecoderLabels, decoder_labels
from cellmill.training.job import Cells, Job
from cellmill.training.model import CellModel, ModelConfig
from tests.training.test_pretraining import config

TOLD: dict[str, Any] = {"batch_label": "donor", "modalities": True, "steps": 2, "panel": None}
TABLE = "batch_encoder.embedding.weight"


@pytest.fixture(scope="module")
def model(atlas: str, tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return pretrain(config(atlas, tmp_path_factory.mktemp("batches") / "run", where="donor == 'd2'", **TOLD)).model


def test_a_model_keeps_its_labels_and_learns_from_them(atlas: str, model: ModelFolder, tmp_path: Path) -> None:
    assert model.labels == {"batch_label": "donor", "batches": ["d2"], "modalities": ["rna"]}
    assert (model.config["n_batch_labels"], model.config["n_modalities"]) == (1, 1)
    # Another donor comes: those that were there keep their ids and, with hardly a learning rate, their vectors.
    told = {**TOLD, "where": None, "init": model.path, "model": {}, "optimizer": {"lr": 1e-12}}
    after = pretrain(config(atlas, tmp_path / "after", **told)).model
    assert after.labels["batches"] == ["d2", "d1"]
    torch.testing.assert_close(after.weights()[TABLE][:1], model.weights()[TABLE])
    assert after.weights()[TABLE].shape == (2, 16)
    with pytest.raises(ConfigError, match="see batch label"):
        pretrain(config(atlas, tmp_path / "other", **{**told, "batch_label": None}))


def test_embedding_and_annotation_need_no_batch(atlas: str, file: Path, model: ModelFolder, tmp_path: Path) -> None:
    cells = ad.read_h5ad(file)
    del cells.obs["donor"]
    assert np.isfinite(embed(cells, model).obsm["X_cellmill"]).all()
    told = {"name": "x", "output": tmp_path / "run", "atlas": atlas, "init": model.path, "label": "kind", "steps": 2}
    told |= {"train_where": "donor == 'd1'", "test_where": "donor == 'd2'", "workers": {"backend": "local"}}
    tuned = finetune(parse_config(FinetuneConfig, {**told, "stream": {"batch_size": 16}}, where="test")).model
    assert {key: tuned.labels[key] for key in model.labels} == model.labels
    torch.testing.assert_close(tuned.weights()[TABLE], model.weights()[TABLE])


def test_decoders_see_the_batch_of_each_cell_and_the_modality_of_each_token(atlas: str, tmp_path: Path) -> None:
    opened = Atlas.open(atlas)
    selection, vocabulary = opened.snapshot().select(), opened.vocabulary()
    told = config(atlas, tmp_path, where=None, **TOLD)
    labels = decoder_labels(told, selection, vocabulary, None)
    tokens = TokenConfig(max_genes=9, prompt_ratios=(0.5,))
    shape = ModelConfig(n_tokens=208, d_model=16, n_layers=1, n_heads=2, d_ff=16, n_batch_labels=2, n_modalities=2)
    job = Job(tmp_path, told, Cells(atlas, 1, None, tokens, None), "generate", shape, None, decoder_labels=labels)
    packed = next(job.stream(0, 1).epoch(0))
    donor = read(atlas).obs.set_index("cell_id")["donor"]
    assert [labels.batches[code] for code in packed.labels["batch"]] == donor[packed.cell_id.tolist()].tolist()

    features = [
        replace(feature, modality="protein" if i % 3 else "rna") for i, feature in enumerate(vocabulary.features)
    ]
    of_token = DecoderLabels(modalities=("protein", "rna")).of_token(Vocabulary(features))
    assert of_token is not None
    (batch,) = Collator(torch.device("cpu"), "targets", shape, of_token)([packed]).arrive()
    assert batch.modality is not None
    wanted = [0 if token >= 8 and (token - 8) % 3 else 1 for token in packed.gene.tolist()]
    assert batch.to_packed_order(batch.modality).tolist() == wanted

    torch.manual_seed(0)
    network = CellModel(shape).eval()
    other = replace(packed, labels={"batch": 1 - packed.labels["batch"]})
    with torch.inference_mode():
        found = []
        for part, modality in ((packed, of_token), (other, of_token), (packed, 1 - of_token)):
            (batch,) = Collator(torch.device("cpu"), "targets", shape, modality)([part]).arrive()
            encoded = network(batch, readout="targets")
            found.append((encoded.cell, network.decode_values(encoded), network.decode_from_cell(encoded)))
    for changed in found[1:]:
        torch.testing.assert_close(changed[0], found[0][0])
        assert all(not torch.allclose(changed[i], found[0][i]) for i in (1, 2))


def test_cells_without_a_batch_are_refused(atlas: str, tmp_path: Path) -> None:
    opened = Atlas.open(atlas)
    told = config(atlas, tmp_path, where=None, batch_label="kind")
    with pytest.raises(ConfigError, match="1 of 90 cells have no batch"):
        decoder_labels(told, opened.snapshot().select(), opened.vocabulary(), None)
    whole = opened.snapshot().select("kind is not null")
    assert decoder_labels(told, whole, opened.vocabulary(), None).batches == ("alpha", "beta", "gamma")


def test_ids_follow_names_when_the_order_of_modalities_changes() -> None:
    before = DecoderLabels("donor", ("a", "b"), ("rna", "atac"))
    after = DecoderLabels("donor", ("a", "b", "c"), ("rna", "atac", "protein"))
    assert {name: rows.tolist() for name, rows in after.rows(before).items()} == {
        TABLE: [0, 1, -1],
        "mod_encoder.embedding.weight": [0, 1, -1],
    }
    features = [Feature("p", "p", modality="atac"), Feature("g", "g")]
    codes = DecoderLabels(modalities=("rna", "atac")).of_token(Vocabulary(features))
    assert codes is not None
    assert codes[8:].tolist() == [1, 0]
    assert DecoderLabels.read(after.document()) == after
