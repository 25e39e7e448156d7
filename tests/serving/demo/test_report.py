from pathlib import Path

import pytest
from matplotlib.figure import Figure

from cellmill.config import Config, load_config
from cellmill.errors import ConfigError
from cellmill.ingestion import IngestConfig
from cellmill.lineage import Lineage
from cellmill.runs import Run
from cellmill.serving.config import ServeConfig
from cellmill.serving.demo.line import DemoConfig, run_demo
from cellmill.serving.demo.report import where_the_model_stands, write_demo_report
from cellmill.serving.demo.steps import Steps
from cellmill.training import FinetuneConfig, PretrainConfig

SCORES = {
    "fine-tuned": {"accuracy": 0.93, "macro_f1": 0.8},
    "from scratch": {"accuracy": 0.90, "macro_f1": 0.7},
    "logistic regression": {"accuracy": 0.932, "macro_f1": 0.9},
    "majority class": {"accuracy": 0.2, "macro_f1": 0.03},
}


def test_the_report_says_where_the_model_stands_whichever_way_it_falls() -> None:
    text = where_the_model_stands(SCORES)
    assert "93.0% of the cells" in text
    assert "3.0 points above the same model without pretraining" in text
    assert "on a par with logistic regression" in text
    assert "a linear model is hard to beat" in text
    better = where_the_model_stands(SCORES | {"fine-tuned": {"accuracy": 0.99, "macro_f1": 0.9}})
    assert "5.8 points above logistic regression" in better
    assert "hard to beat" not in better


def test_every_configuration_of_the_demo_is_valid(tmp_path: Path) -> None:
    steps = Steps(tmp_path)
    load_config(IngestConfig, steps.config("ingest", source="cells.h5ad"))
    pretrain = load_config(PretrainConfig, steps.config("pretrain"))
    annotate = load_config(FinetuneConfig, steps.config("annotate"))
    load_config(ServeConfig, steps.config("serve", port=8123))
    assert pretrain.stream.backend == "ray"
    assert "human4" in (pretrain.where or "")
    assert annotate.test_where == "donor == 'human4'"


def test_the_page_holds_every_part(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "demo", DemoConfig())
    run.figure("umap", Figure())
    for name, kind in (("ingest", "ingest"), ("pretrain", "pretrain"), ("annotate", "finetune")):
        Run.create(tmp_path / name, kind, Config()).figure("loss", Figure())
    source = Lineage(kind="source", name="a.h5ad", digest="f" * 64)
    page = write_demo_report(
        tmp_path,
        scores=SCORES,
        seconds={"ingest": 3.0},
        served="Equal.",
        apart="None.",
        ingest_run=tmp_path / "ingest",
        lineage=source,
    )
    text = page.read_text()
    assert text.count("data:image/png") == 4
    assert "Equal." in text
    assert "a.h5ad" in text


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="no earlier demo"):
        run_demo(DemoConfig(output=tmp_path))
    assert (tmp_path / "thesis.tex").exists()
