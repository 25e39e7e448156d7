"""The whole line in one function: fetch, ingest, pretrain, fine-tune, embed, serve, ask, trace, report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import anndata as ad
import numpy as np

from cellmill.atlas import Atlas, read
from cellmill.atlas.leakage import find_leakage
from cellmill.config import Config, load_config
from cellmill.console import console
from cellmill.errors import CellmillError, ConfigError
from cellmill.ingestion import IngestConfig, ingest
from cellmill.ingestion.datasets import fetch
from cellmill.runs import Run
from cellmill.serving.client import Client
from cellmill.serving.config import ServeConfig
from cellmill.serving.demo.report import write_demo_report
from cellmill.serving.demo.steps import Steps
from cellmill.serving.server import running
from cellmill.trace import trace
from cellmill.training import FinetuneConfig, PretrainConfig, annotate, embed, finetune, pretrain
from cellmill.training.evaluate import umap_figure

DATASET = "baron_human_pancreas"
HELD_OUT = "human4"
ANNOTATION, EMBEDDING = "pancreas-annotation", "pancreas-embedding"
TOLERANCE = 1e-5
"""Largest difference between a served probability and the same one computed offline (float32 in another batch)."""


class DemoConfig(Config):
    """Where the demo writes and where its endpoint listens."""

    output: Path = Path("demo-run")
    port: int = 8123


class DemoResult(Config):
    """What the demo did: wall time by step, scores by method, how served answers compare, and where it is all told."""

    seconds: dict[str, float]
    scores: dict[str, dict[str, float]]
    served: str
    sources: tuple[str, ...]
    report: Path


def run_demo(config: DemoConfig) -> DemoResult:
    """Run the line from a public h5ad to an answered request, and write a report.

    Raises
    ------
    ConfigError
        The output folder exists and is not an earlier demo.
    CellmillError
        A step failed, or the served answers differ from the offline ones.
    """
    directory = _fresh(config.output.absolute())
    run = Run.create(directory, "demo", config)
    steps = Steps(directory)

    with steps.step("fetch", f"cellmill datasets fetch {DATASET}"):
        source = fetch(DATASET)
    path = steps.config("ingest", source=source)
    with steps.step("ingest", f"cellmill ingest {path}"):
        ingested = ingest(load_config(IngestConfig, path))
        apart = _held_out_is_apart(directory / "atlas")
    path = steps.config("pretrain")
    with steps.step("pretrain", f"cellmill pretrain {path}"):
        pretrain(load_config(PretrainConfig, path))
    path = steps.config("annotate")
    with steps.step("finetune", f"cellmill finetune {path}"):
        tuned = finetune(load_config(FinetuneConfig, path))

    model = directory / "annotate" / "model"
    with steps.step("embed", f"cellmill embed {directory}/held_out.h5ad {directory}/embedded.h5ad --model {model}"):
        held_out = read(str(directory / "atlas"), where=f"donor == '{HELD_OUT}'")
        held_out.write_h5ad(directory / "held_out.h5ad")
        embedded = embed(held_out, model)
        embedded.write_h5ad(directory / "embedded.h5ad")
        run.figure("umap", umap_figure(embedded, color="cell_type"))

    path = steps.config("serve", port=config.port)
    with steps.step("serve and ask", f"cellmill serve {path}"), running(load_config(ServeConfig, path)) as url:
        served = _ask(url, held_out, model, directory / "answer.json")
    walk = trace(str(directory / "answer.json"), directory)
    run.lineage(walk)

    report = write_demo_report(
        directory,
        scores=tuned.scores,
        seconds=steps.seconds,
        served=served,
        apart=apart,
        ingest_run=ingested.run,
        lineage=walk,
    )
    result = DemoResult(
        seconds=steps.seconds,
        scores=tuned.scores,
        served=served,
        sources=tuple(source.digest for source in walk.sources()),
        report=report,
    )
    run.summary(result.model_dump(mode="json"))
    run.close()
    return result


def _held_out_is_apart(atlas: Path) -> str:
    """Verify the atlas, and make sure that no cell of the held-out donor is among those that are learned from."""
    opened = Atlas.open(atlas)
    opened.verify().check()
    snapshot = opened.snapshot()
    held_out = snapshot.select(f"donor == '{HELD_OUT}'")
    leakage = find_leakage(snapshot.select(f"donor != '{HELD_OUT}'"), held_out)
    if leakage.equal_cells or leakage.same_cells or leakage.n_donors:
        raise CellmillError(
            f"{leakage.equal_cells} cells of the held-out donor equal cells that are learned from.", where=opened.url
        )
    return f"Of the {held_out.n_cells} cells of the held-out donor none equals a cell that the models learned from."


def _ask(url: str, cells: ad.AnnData, model: Path, answer_path: Path) -> str:
    """Send the cells over HTTP to both models and hold the answers against the offline predictions."""
    client = Client(url)
    answer = client.annotate_raw(cells, ANNOTATION)
    answer_path.write_text(json.dumps(answer))
    offline = annotate(cells, model)
    labels = np.array(answer["labels"])
    confidence = np.array(answer["confidence"])
    wrong = int((labels != offline.obs["cellmill_label"].to_numpy()).sum())
    off = float(np.abs(confidence - offline.obs["cellmill_confidence"].to_numpy()).max())
    vectors = client.embed(cells, EMBEDDING)
    apart = float(np.abs(vectors - embed(cells, model.parents[1] / "pretrain" / "model").obsm["X_cellmill"]).max())
    if wrong or off > TOLERANCE or apart > TOLERANCE:
        raise CellmillError(
            f"The served answers differ from the offline ones: {wrong} labels, confidence by {off:.1e}, "
            f"embeddings by {apart:.1e}.",
            where=url,
        )
    console.print(f"{len(labels)} cells answered over HTTP; {', '.join(sorted(set(labels))[:4])}, ...")
    return (
        f"Served over HTTP, all {len(labels)} labels equal the offline predictions; confidences differ by at most "
        f"{off:.0e}, embeddings by {apart:.0e}."
    )


def _fresh(directory: Path) -> Path:
    if (directory / "run.json").exists() and Run.open(directory).kind == "demo":
        shutil.rmtree(directory)
    elif directory.exists() and any(directory.iterdir()):
        raise ConfigError(
            "The folder is not empty and holds no earlier demo.", where=str(directory), fix="Choose another --output."
        )
    return directory
