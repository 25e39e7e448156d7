from pathlib import Path

import pytest

from cellmill.config import Config
from cellmill.errors import ConfigError, SourceError
from cellmill.lineage import Lineage
from cellmill.runs import Run


class Settings(Config):
    steps: int = 3


SOURCE = Lineage(kind="source", name="a.h5ad", digest="f" * 64, facts={"licence": "MIT"})


def test_a_run_keeps_everything(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "r", "pretrain", Settings())
    for step in (1, 2, 3, 2):
        run.log({"loss": step / (1 + len(run.metrics())), "bad": float("nan")}, step)
    run.lineage(SOURCE)
    run.summary({"loss": 0.5})
    run.close()
    again = Run.open(tmp_path / "r")
    assert [line["step"] for line in again.metrics()] == [1, 2, 3]
    assert again.metrics()[1]["loss"] == pytest.approx(2 / 4)
    assert again.kind == "pretrain"
    assert again.read_lineage() == SOURCE
    assert again.read_summary() == {"loss": 0.5}
    assert (again.path / "config.yaml").read_text() == "steps: 3\n"
    assert list((again.path / "tensorboard").iterdir())


def test_a_finished_run_is_not_overwritten(tmp_path: Path) -> None:
    Run.create(tmp_path, "pretrain", Settings())
    with pytest.raises(ConfigError, match="already holds"):
        Run.create(tmp_path, "pretrain", Settings())
    with pytest.raises(ConfigError, match="already holds"):
        Run.create(tmp_path, "finetune", Settings(), resume=True)
    assert Run.create(tmp_path, "pretrain", Settings(), resume=True).path == tmp_path


def test_a_foreign_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="not empty"):
        Run.create(tmp_path, "pretrain", Settings())
    with pytest.raises(SourceError, match="no run"):
        Run.open(tmp_path)
