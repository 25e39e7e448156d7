"""Whole pretraining runs in this process: what they leave behind, and that an interruption leaves no trace."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cellmill.atlas import Atlas
from cellmill.atlas.collecting import Forget, collect
from cellmill.atlas.withdrawing import remove
from cellmill.config import parse_config
from cellmill.errors import CheckpointError, ConfigError, IntegrityError
from cellmill.forward import forward
from cellmill.ingestion import IngestConfig, SourceConfig, ingest
from cellmill.models import ModelFolder
from cellmill.runs import Run
from cellmill.tokens import TokenConfig
from cellmill.training import PretrainConfig, PretrainResult, pretrain
from cellmill.training.checkpoint import newest
from tests.training.small import cells, genes

SETTINGS: dict[str, Any] = {
    "name": "small",
    "where": "donor == 'd1'",
    "panel": {"n_top": 60},
    "tokens": {"max_genes": 24, "prompt_ratios": [0.25, 0.5]},
    "stream": {"batch_size": 16, "lanes": 2, "backend": "local"},
    "model": {"d_model": 16, "n_layers": 2, "n_heads": 2, "d_ff": 16, "dropout": 0.1},
    "optimizer": {"lr": 0.003},
    "steps": 9,
    "token_capacity": 300,
    "workers": {"backend": "local"},
    "checkpoint": {"every_steps": 4},
    "log_every": 1,
}


def config(atlas: str, output: Path, **changes: Any) -> PretrainConfig:
    return parse_config(PretrainConfig, {**SETTINGS, "atlas": atlas, "output": output, **changes}, where="test")


def weights_equal(a: ModelFolder, b: ModelFolder) -> bool:
    ours, theirs = a.weights(), b.weights()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def numbers(run: Run) -> list[tuple[float, ...]]:
    return [tuple(line[key] for key in ("step", "loss", "gen", "lr", "grad_norm")) for line in run.metrics()]


@pytest.fixture(scope="module")
def undisturbed(atlas: str, tmp_path_factory: pytest.TempPathFactory) -> PretrainResult:
    return pretrain(config(atlas, tmp_path_factory.mktemp("whole") / "run"))


@pytest.mark.parametrize("tokens", [{"value": "bins"}, TokenConfig(max_genes=24)])
def test_genes_are_generated_unless_told_otherwise(tokens: Any) -> None:
    assert config("atlas", Path("run"), tokens=tokens).tokens.prompt_ratios == (0.25, 0.5, 0.75)
    assert config("atlas", Path("run"), tokens={"mask_ratio": 0.4}).tokens.prompt_ratios == ()
    with pytest.raises(ConfigError, match="nothing to learn"):
        config("atlas", Path("run"), tokens={"prompt_ratios": []})


def test_what_a_run_leaves_behind(undisturbed: PretrainResult, atlas: str) -> None:
    path = undisturbed.run.path
    for name in ("config.yaml", "metrics.jsonl", "tensorboard", "plots/loss.png", "lineage.json", "summary.json"):
        assert (path / name).exists(), name
    assert yaml.safe_load((path / "config.yaml").read_text())["snapshot"] == 1
    assert undisturbed.model.task == "embed"
    assert len(undisturbed.model.preprocessing["panel"]) == 60
    assert undisturbed.model.vocabulary.size == 208
    (source,) = undisturbed.model.lineage.sources()
    assert source.facts["licence"] == "CC0-1.0"
    lines = undisturbed.run.metrics()
    assert [line["step"] for line in lines] == list(range(1, 10))
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert [found.name for found in sorted((path / "checkpoints").iterdir())] == ["step-00000008", "step-00000009"]


def test_an_interrupted_run_ends_bit_equal(
    undisturbed: PretrainResult, atlas: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Run.log

    def cut_off(self: Run, metrics: Mapping[str, float], step: int) -> None:
        if step == 7:
            raise KeyboardInterrupt
        log(self, metrics, step)

    monkeypatch.setattr(Run, "log", cut_off)
    with pytest.raises(KeyboardInterrupt):
        pretrain(config(atlas, tmp_path / "run"))
    monkeypatch.undo()
    assert not (tmp_path / "run" / "model").exists()
    with pytest.raises(ConfigError, match="already holds a run"):
        pretrain(config(atlas, tmp_path / "run"))
    resumed = pretrain(config(atlas, tmp_path / "run"), resume=True)
    assert numbers(resumed.run) == numbers(undisturbed.run)
    assert weights_equal(resumed.model, undisturbed.model)
    again = pretrain(config(atlas, tmp_path / "run"), resume=True)  # a finished run is left as it is
    assert again.model.digest == resumed.model.digest


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"seed": 5}, "seed"),
        ({"optimizer": {"lr": 0.1}}, r"optimizer\.lr"),
        ({"stream": {"batch_size": 32, "lanes": 2}}, r"stream\.batch_size"),
        ({"where": "donor == 'd2'"}, "where"),
    ],
)
def test_another_configuration_does_not_resume(
    undisturbed: PretrainResult, atlas: str, change: dict[str, Any], key: str
) -> None:
    with pytest.raises(CheckpointError, match=f"^{key} was"):
        pretrain(config(atlas, undisturbed.run.path, **change), resume=True)


def test_what_does_not_change_the_training_may_change(undisturbed: PretrainResult, atlas: str) -> None:
    changed = config(atlas, undisturbed.run.path, zero_stage=2, log_every=3, workers={"backend": "local", "cpus": 2})
    assert pretrain(changed, resume=True).model.digest == undisturbed.model.digest


def test_the_last_checkpoint_holds_position_and_configuration(undisturbed: PretrainResult) -> None:
    found = newest(undisturbed.run.path / "checkpoints")
    assert found is not None
    assert found.marker.steps == 9
    assert found.marker.position["epoch"] == 2  # 60 cells in batches of 16: four steps an epoch
    assert found.marker.config["optimizer"]["lr"] == 0.003


def test_bad_configurations_are_refused(atlas: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="either `epochs` or `steps`"):
        config(atlas, tmp_path, epochs=1)
    with pytest.raises(ConfigError, match=r"'optimizer\.learning_rate' is not a known key"):
        config(atlas, tmp_path, optimizer={"learning_rate": 1})
    with pytest.raises(ConfigError, match="No cell is selected"):
        pretrain(config(atlas, tmp_path / "run", where="donor == 'nobody'"))
    with pytest.raises(ConfigError, match="local backend is one process"):
        config(atlas, tmp_path / "run", workers={"backend": "local", "n": 3})


def test_cells_of_a_damaged_shard_are_left_out_and_told_of(tmp_path: Path) -> None:
    for i, n in enumerate((40, 25)):
        cells(n, [gene.id for gene in genes()], seed=i).write_h5ad(tmp_path / f"part{i}.h5ad")
    sources = tuple(SourceConfig(path=str(tmp_path / f"part{i}.h5ad"), organism="human") for i in range(2))
    url = str(tmp_path / "atlas")
    ingest(IngestConfig(atlas=url, sources=sources, backend="local", output=tmp_path / "run"))
    entry = next(entry for entry in Atlas.open(url).snapshot().shards if entry.n_cells == 25)
    shutil.rmtree(tmp_path / "atlas" / entry.shard_path)
    changes = {"where": None, "panel": None, "checkpoint": {"every_steps": 6}}
    with pytest.raises(IntegrityError, match=entry.digest):
        pretrain(config(url, tmp_path / "stops", **changes))
    skipping = {**SETTINGS["stream"], "on_corrupt": "skip"}
    found = pretrain(config(url, tmp_path / "skips", steps=10, stream=skipping, **changes))
    # 65 cells in batches of 16: five steps an epoch, two epochs.
    assert [line["step"] for line in found.run.metrics()] == list(range(1, 11))
    assert found.run.read_summary()["skipped_cells"] == {f"{entry.dataset}/{entry.digest}": 50}
    # The choice of a panel leaves them out as well.
    chosen = {**changes, "panel": {"n_top": 20}}
    with pytest.raises(IntegrityError, match=entry.digest):
        pretrain(config(url, tmp_path / "panel stops", **chosen))
    summary = pretrain(config(url, tmp_path / "panel", steps=1, stream=skipping, **chosen)).run.read_summary()
    assert summary["panel_skipped_cells"] == {f"{entry.dataset}/{entry.digest}": 25}


def test_a_model_is_named_to_a_donor_who_withdraws_after_its_snapshot_is_forgotten(atlas: str, tmp_path: Path) -> None:
    own = shutil.copytree(atlas, tmp_path / "atlas")
    for name, where in (("all", None), ("most", "n_genes >= 1 and source_row < 80")):
        pretrain(config(str(own), tmp_path / "runs" / name, name=name, where=where, steps=1))
    there = Atlas.open(own)
    remove(there, "donor == 'd2'", "consent")
    assert collect(there, Forget(), grace_s=0).forgotten == (0, 1)
    seen = forward(f"{own}#1", tmp_path / "runs").found
    assert {one.kind for one in seen} == {"run", "model"}  # what a run writes is no answer of a model
    found = {one.name: one for one in seen if one.kind == "model"}
    # Of 90 cells 30 are of d2: of any 80 at least 20.
    assert {name: (one.saw, one.cells) for name, one in found.items()} == {
        "all": ("yes", 30),
        "most": ("yes", 20),
    }
    assert "at least 20 of 30" in found["most"].why
