"""Conditions reach the model from YAML, are kept with it, and are the same in fine-tuning and in inference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import torch
import yaml

from cellmill.atlas import Atlas, read
from cellmill.config import load_config, parse_config
from cellmill.errors import ConfigError, GeneMappingError
from cellmill.ingestion import IngestConfig, SourceConfig, ingest
from cellmill.models import ModelFolder, load_model
from cellmill.runs import Run
from cellmill.tokens import PackedBatch
from cellmill.training import FinetuneConfig, PretrainConfig, embed, finetune, pretrain
from cellmill.training.conditions import TABLE, KnownConditions, training_conditions
from cellmill.training.inference import Predictor
from cellmill.training.job import Cells, Job
from cellmill.training.model import ModelConfig
from tests.training.small import cells, genes
from tests.training.test_pretraining import config

N = 48
SYMBOLS = [gene.symbol for gene in genes()]
SMALL: dict[str, Any] = {"panel": None, "where": None, "steps": 1, "stream": {"batch_size": 16}, "token_capacity": 9999}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cells treated with one of two drugs or none, a third of them knocked out in one or two genes."""
    found = cells(N, [gene.id for gene in genes()], seed=8)
    at = np.arange(N)
    found.obs["drug"] = np.array(["DMSO", "x", "y"], object)[at % 3]
    found.obs["donor"] = np.where(at < 36, "d1", "d2")
    found.obs["kind"] = np.array(["a", "b"])[at // 2 % 2]
    knocked = np.array(["ctrl", f"{SYMBOLS[7]}+ctrl", f"{SYMBOLS[3]}+{genes()[90].id}", None], object)
    found.obs["knocked"] = knocked[at % 4]
    counts = found.X.toarray()
    counts[np.ix_(at % 4 == 1, [7])] = 0
    counts[np.ix_(at % 4 == 2, [3, 90])] = 0
    found.X = counts
    path = tmp_path_factory.mktemp("conditions") / "cells.h5ad"
    found.write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def perturbed(file: Path) -> str:
    source = SourceConfig(path=str(file), organism="human", licence="CC0-1.0", obs="all")
    folder = file.parent
    ingest(IngestConfig(atlas=str(folder / "atlas"), sources=(source,), backend="local", output=folder / "run"))
    return str(folder / "atlas")


def from_yaml(atlas: str, output: Path, **changes: Any) -> PretrainConfig:
    """Return a configuration as `cellmill pretrain` reads it."""
    told = config(atlas, output, **{**SMALL, **changes}).model_dump(mode="json", exclude_unset=True)
    path = output.parent / f"{output.name}.yaml"
    path.write_text(yaml.safe_dump(told))
    return load_config(PretrainConfig, path)


@pytest.fixture(scope="module")
def treated(perturbed: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, ModelFolder]:
    out = tmp_path_factory.mktemp("treated") / "run"
    told = {"where": "drug != 'y'", "conditions": {"by": "drug", "none": ["DMSO"]}}
    found = pretrain(from_yaml(perturbed, out, **told))
    return found.run, found.model


def test_a_model_keeps_its_conditions_and_learns_them(treated: tuple[Run, ModelFolder]) -> None:
    run, model = treated
    assert model.labels["conditions"] == ["x"]
    assert model.config["n_conditions"] == 1
    assert run.read_summary()["cells_without_condition"] == N // 3
    known = KnownConditions.read(load_model(model.path).labels, where="test")
    assert known is not None
    assert known.document().items() <= model.labels.items()
    assert known.unconditioned
    again = load_config(PretrainConfig, run.path / "config.yaml")
    assert again.conditions == known.rule
    assert not model.weights()[TABLE][0].any()
    # Its row moved from where it began, which is where another run from the same seed begins.
    job = Job(run.path, again, Cells("", 1, None, again.tokens, None), "generate", ModelConfig(**model.config), None)
    assert not torch.equal(job.initial_model().state_dict()[TABLE][1], model.weights()[TABLE][1])


def test_new_conditions_follow_those_that_a_model_knows(
    perturbed: str, treated: tuple[Run, ModelFolder], tmp_path: Path
) -> None:
    _, model = treated
    told = {"init": str(model.path), "model": {}, "optimizer": {"lr": 1e-12}}
    grown = pretrain(from_yaml(perturbed, tmp_path / "run", **told)).model
    assert grown.labels["conditions"] == ["x", "y"]
    torch.testing.assert_close(grown.weights()[TABLE][:2], model.weights()[TABLE])
    assert grown.weights()[TABLE].shape == (3, 16)
    forgot = pretrain(from_yaml(perturbed, tmp_path / "none", **told, conditions="none")).model
    assert "conditions" not in forgot.labels


def test_embedding_takes_the_condition_of_each_cell(file: Path, treated: tuple[Run, ModelFolder]) -> None:
    _, model = treated
    every = ad.read_h5ad(file)
    with pytest.raises(ConfigError, match="none that the model knows, such as 'y'"):
        embed(every, model)
    some = every[every.obs["drug"] != "y"].copy()
    with_column = embed(some, model)
    assert with_column.uns["cellmill"]["cells_with_condition"] == N // 3
    del some.obs["drug"]
    without = embed(some, model)
    assert without.uns["cellmill"]["cells_with_condition"] == 0
    same = (with_column.obsm["X_cellmill"] == without.obsm["X_cellmill"]).all(axis=1)
    assert (same == (with_column.obs["drug"] == "DMSO").to_numpy()).all()


def test_fine_tuning_adds_conditions_to_a_model_without(
    perturbed: str, file: Path, treated: tuple[Run, ModelFolder], tmp_path: Path
) -> None:
    plain = pretrain(from_yaml(perturbed, tmp_path / "plain")).model
    assert plain.config["n_conditions"] == 0

    def tune(name: str, **changes: Any) -> ModelFolder:
        told = {"name": "x", "output": tmp_path / name, "atlas": perturbed, "label": "kind", "steps": 2}
        told |= {"train_where": "donor == 'd1'", "test_where": "donor == 'd2'", "workers": {"backend": "local"}}
        told |= {"stream": {"batch_size": 16}, "init": plain.path, **changes}
        return finetune(parse_config(FinetuneConfig, told, where="test")).model

    by_drug = {"conditions": {"by": "drug"}}
    apart = {"train_where": "drug != 'y'", "test_where": "drug == 'y'"}
    with pytest.raises(ConfigError, match="none that the model knows, such as 'y'") as error:
        tune("apart", **apart, **by_drug)
    assert "test_where" in error.value.where
    tuned = tune("whole", **by_drug)
    assert tuned.labels["conditions"] == ["DMSO", "x", "y"]
    assert tuned.weights()[TABLE].shape == (4, 16)
    # All that it learnt from had a condition, so that it says nothing of cells without.
    nameless = ad.read_h5ad(file)
    del nameless.obs["drug"]
    with pytest.raises(ConfigError, match="48 of 48 cells have no condition"):
        embed(nameless, tuned)
    # What goes on from a model takes its conditions.
    again = tune("again", init=treated[1].path)
    assert again.labels["conditions"] == ["x", "y"]
    with pytest.raises(ConfigError, match="mark cells"):
        tune("other", init=treated[1].path, conditions={"by": "knocked", "marks": "genes"})


KNOCKED: dict[str, Any] = {"by": "knocked", "marks": "genes", "none": ["ctrl"]}
EVERY = {"max_genes": 20, "include_zero": "all", "prompt_ratios": [0.5]}


def test_perturbed_genes_are_tokens_that_are_marked(perturbed: str, file: Path, tmp_path: Path) -> None:
    told = from_yaml(perturbed, tmp_path / "run", tokens=EVERY, conditions=KNOCKED)
    opened = Atlas.open(perturbed)
    vocabulary, selection = opened.vocabulary(), opened.snapshot().select()
    found = training_conditions(told.conditions, None, selection, vocabulary, None, told.tokens)
    assert found is not None
    assert found.n_without == N // 2
    shape = ModelConfig(n_tokens=vocabulary.size)
    job = Job(tmp_path, told, Cells(perturbed, 1, None, told.tokens, None, conditions=found), "generate", shape, None)
    packed = PackedBatch.concatenate(list(job.stream(0, 1).epoch(0)))
    assert packed.condition is not None
    knocked = read(perturbed).obs.set_index("cell_id")["knocked"]
    wanted = {None: [], "ctrl": [], f"{SYMBOLS[7]}+ctrl": [7], f"{SYMBOLS[3]}+{genes()[90].id}": [3, 90]}
    for cell, start, stop in zip(packed.cell_id, packed.cu_seqlens[:-1], packed.cu_seqlens[1:], strict=True):
        marked = packed.gene[start:stop][packed.condition[start:stop] == 1]
        value = knocked[cell] if isinstance(knocked[cell], str) else None
        ids = [genes()[i].id for i in wanted[value]]
        assert sorted(marked.tolist()) == sorted(vocabulary.lookup(ids).tolist())

    model = pretrain(told).model
    assert model.labels["conditions"] == ["perturbed"]
    assert sorted(model.labels["marked_genes"]) == sorted(genes()[i].id for i in (3, 7, 90))
    # A perturbation that training has not seen is marked, too; the same cells without it come out otherwise.
    control = ad.read_h5ad(file)
    control.obs["knocked"] = "ctrl"
    predictor = Predictor(model, device="cpu")
    plain = predictor.prepare(control)
    control.obs["knocked"] = f"{SYMBOLS[50]}+{SYMBOLS[7]}"
    query = predictor.prepare(control)
    assert (plain.report.cells_with_condition, query.report.cells_with_condition) == (0, N)
    assert (
        (predictor.embed(query.block, query.conditions) != predictor.embed(plain.block, plain.conditions)).all(0).any()
    )
    control.obs["knocked"] = "no gene"
    with pytest.raises(GeneMappingError, match="'no gene'"):
        predictor.prepare(control)


@pytest.mark.parametrize(
    ("conditions", "tokens", "error", "what"),
    [
        ({"by": "drugs"}, {}, ConfigError, "drugs"),
        ({"by": "drug", "none": ["DMS0"]}, {}, ConfigError, "No cell has 'DMS0'"),
        (KNOCKED, {}, ConfigError, "would be lost"),
        ({**KNOCKED, "by": "drug", "none": []}, EVERY, GeneMappingError, "'DMSO' is none of the genes"),
        ({"by": "drug", "none": ["DMSO", "x", "y"]}, {}, ConfigError, "No cell has a condition"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    perturbed: str, conditions: dict[str, Any], tokens: dict[str, Any], error: type[Exception], what: str
) -> None:
    told = config(perturbed, Path("run"), tokens={"prompt_ratios": [0.5], **tokens}, conditions=conditions)
    opened = Atlas.open(perturbed)
    with pytest.raises(error, match=what):
        training_conditions(told.conditions, None, opened.snapshot().select(), opened.vocabulary(), None, told.tokens)
