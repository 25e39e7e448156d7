"""Fine-tuning runs in this process: scores beside baselines, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
from typer.testing import CliRunner

from cellmill.atlas import Atlas
from cellmill.cli import app
from cellmill.config import parse_config
from cellmill.errors import ConfigError, GeneMappingError, IntegrityError, ModelError
from cellmill.genes import N_SPECIALS, Vocabulary
from cellmill.ingestion import IngestConfig, SourceConfig, ingest
from cellmill.models import load_model, save_model
from cellmill.training import FinetuneConfig, annotate, finetune
from cellmill.training.start import known_panel, map_tokens
from tests.training.small import cells, genes, make_model

SETTINGS: dict[str, Any] = {
    "name": "kinds",
    "label": "kind",
    "train_where": "donor == 'd1'",
    "test_where": "donor == 'd2'",
    "tokens": {"max_genes": 60},
    "stream": {"batch_size": 8, "lanes": 2, "backend": "local"},
    "optimizer": {"lr": 0.01},
    "epochs": 16,
    "workers": {"backend": "local"},
}
SHAPE = {"d_model": 16, "n_layers": 2, "n_heads": 2, "d_ff": 16, "norm": "pre"}


def config(atlas: str, output: Path, **changes: Any) -> FinetuneConfig:
    return parse_config(FinetuneConfig, {**SETTINGS, "atlas": atlas, "output": output, **changes}, where="test")


def test_from_a_pretrained_model_beside_the_baselines(atlas: str, file: Path, tmp_path: Path) -> None:
    pretrained = make_model(tmp_path / "pretrained", panel=80, backwards=True)  # other token ids than the atlas
    result = finetune(config(atlas, tmp_path / "run", init=pretrained.path, compare_scratch=True))
    assert list(result.scores) == ["fine-tuned", "from scratch", "logistic regression", "majority class"]
    assert result.scores["logistic regression"]["accuracy"] == 1
    assert result.scores["majority class"]["accuracy"] == pytest.approx(1 / 3, abs=0.01)
    assert result.scores["fine-tuned"]["accuracy"] > 0.8
    assert result.unlabelled == {"train": 1, "test": 0}
    assert (result.run.path / "plots" / "confusion.png").exists()

    model = load_model(result.model.path)
    assert model.task == "annotate"
    assert model.labels["classes"] == ["alpha", "beta", "gamma"]
    assert model.metrics["fine-tuned"]["accuracy"] == result.scores["fine-tuned"]["accuracy"]
    assert len(model.preprocessing["panel"]) == 80  # the pretrained model's
    assert {node.kind for node in model.lineage.walk()} >= {"run", "snapshot", "source", "model"}
    assert pretrained.digest in {node.digest for node in model.lineage.walk()}

    # The scores are those of the folder: what it predicts offline is what was judged.
    held_out = ad.read_h5ad(file)[60:]
    found = annotate(held_out, model).obs["cellmill_label"].astype(str).to_numpy()
    assert (found == held_out.obs["kind"].to_numpy()).mean() == pytest.approx(result.scores["fine-tuned"]["accuracy"])


def test_panel_and_baselines_leave_out_the_cells_of_damaged_shards(tmp_path: Path) -> None:
    for i, n in enumerate((40, 25, 30)):
        adata = cells(n, [gene.id for gene in genes()], seed=i)
        adata.obs["kind"] = np.where(np.arange(n) % 2, "alpha", "beta")
        adata.write_h5ad(tmp_path / f"part{i}.h5ad")
    sources = [
        SourceConfig(path=str(tmp_path / f"part{i}.h5ad"), organism="human", obs={"kind": "kind"}) for i in range(3)
    ]
    url = str(tmp_path / "atlas")
    ingest(IngestConfig(atlas=url, sources=tuple(sources), backend="local", output=tmp_path / "ingested"))
    shards = {entry.n_cells: entry for entry in Atlas.open(url).snapshot().shards}
    train, test = shards[25], shards[30]
    shutil.rmtree(tmp_path / "atlas" / train.shard_path)
    changes: dict[str, Any] = {
        "train_where": "dataset in ('part0', 'part1')",
        "test_where": "dataset == 'part2' or dataset == 'part1' and n_genes < 0",
        "panel": {"n_top": 30},
        "model": SHAPE,
        "epochs": 1,
        "stream": {**SETTINGS["stream"], "on_corrupt": "skip"},
    }
    result = finetune(config(url, tmp_path / "run", **changes))
    summary = result.run.read_summary()
    lost = {f"{train.dataset}/{train.digest}": 25}
    assert summary["panel_skipped_cells"] == summary["skipped_cells"] == lost
    assert summary["scores_skipped_cells"] == {"train": lost, "test": {}}
    assert list(result.scores) == ["from scratch", "logistic regression", "majority class"]
    shutil.rmtree(tmp_path / "atlas" / test.shard_path)
    with pytest.raises(IntegrityError, match=test.digest):
        finetune(config(url, tmp_path / "nothing left", **changes))


def test_from_scratch_through_the_command(atlas: str, file: Path, tmp_path: Path) -> None:
    path = tmp_path / "annotate.yaml"
    config(atlas, tmp_path / "run", model=SHAPE, panel={"n_top": 80}, epochs=2).save(path)
    runner = CliRunner()
    done = runner.invoke(app, ["finetune", str(path), "--json"])
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert list(answer["scores"]) == ["from scratch", "logistic regression", "majority class"]
    target = tmp_path / "out.h5ad"
    done = runner.invoke(app, ["annotate", str(file), str(target), "--model", answer["model"], "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["model_digest"] == answer["model_digest"]
    assert set(ad.read_h5ad(target).obs["cellmill_label"]) <= {"alpha", "beta", "gamma"}
    done = runner.invoke(app, ["embed", str(file), str(target), "--model", answer["model"]])
    assert done.exit_code == 0, done.output
    assert ad.read_h5ad(target).obsm["X_cellmill"].shape == (90, 16)


def test_truth_values_are_classes(atlas: str, tmp_path: Path) -> None:
    result = finetune(config(atlas, tmp_path / "run", label="first_kind", model=SHAPE, epochs=1))
    assert load_model(result.model.path).labels["classes"] == ["false", "true"]
    assert result.unlabelled == {"train": 0, "test": 0}
    assert result.scores["logistic regression"]["accuracy"] == 1
    assert result.run.metrics()[-1]["accuracy"] > 0
    assert result.run.read_summary()["never_drawn_cells"] == 0


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"tokens": {"n_bins": 31}, "init": "MODEL"}, "trained with 51 bins, not 31"),
        ({"tokens": {"value": "log1p"}, "model": {"value_encoder": "category"}}, "log1p values are none"),
        ({"test_where": "donor == 'd2' or n_genes > 0"}, "60 cells are both in training and in the test"),
        ({"train_where": "donor == 'd1' and kind == 'beta'"}, "1 classes in 'kind'"),
        ({"label": "sort"}, "sort"),
        ({"model": {"preset": "scgpt"}, "init": "MODEL"}, r"model\.preset is fixed by the pretrained model"),
        ({"model": {"d_model": 32}, "init": "MODEL"}, r"model\.d_model is fixed by the pretrained model"),
    ],
)
def test_bad_configurations_are_refused(atlas: str, tmp_path: Path, change: dict[str, Any], text: str) -> None:
    if "init" in change:
        change = {**change, "init": make_model(tmp_path / "pretrained").path}
    with pytest.raises(ConfigError, match=text):
        finetune(config(atlas, tmp_path / "run", **change))


def test_a_damaged_or_foreign_model_is_refused(atlas: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        finetune(config(atlas, tmp_path / "a", init=tmp_path / "nothing"))
    whole = make_model(tmp_path / "whole")
    mouse = save_model(
        tmp_path / "mouse",
        name="mouse",
        task="embed",
        config=whole.config,
        weights=whole.weights(),
        vocabulary=Vocabulary(genes(organism="mouse")),
        preprocessing=whole.preprocessing,
        labels={},
        metrics={},
        lineage=whole.lineage,
    )
    with pytest.raises(GeneMappingError, match="none of the genes of the pretrained model"):
        finetune(config(atlas, tmp_path / "b", init=mouse.path))
    weights = whole.weights()
    weights.pop("decoder.fc.0.weight")
    cut = save_model(
        tmp_path / "cut",
        name="cut",
        task="embed",
        config=whole.config,
        weights=weights,
        vocabulary=whole.vocabulary,
        preprocessing=whole.preprocessing,
        labels={},
        metrics={},
        lineage=whole.lineage,
    )
    with pytest.raises(ModelError, match=r"1 of the pretrained weights are missing: decoder\.fc\.0\.weight"):
        finetune(config(atlas, tmp_path / "c", init=cut.path))


def test_tokens_map_between_vocabularies() -> None:
    features = genes(6)
    atlas, model = Vocabulary(features), Vocabulary([features[4], features[1]])
    mapped = map_tokens(atlas, model)
    np.testing.assert_array_equal(mapped[:N_SPECIALS], np.arange(N_SPECIALS))
    np.testing.assert_array_equal(mapped[N_SPECIALS:], [-1, 9, -1, -1, 8, -1])
    np.testing.assert_array_equal(known_panel(mapped, None), [9, 12])
    np.testing.assert_array_equal(known_panel(mapped, np.array([8, 12], np.uint32)), [12])
