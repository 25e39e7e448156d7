"""The README's walk from a file to an answer and back: real cells, real Ray, DeepSpeed and Serve, through the CLI."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import requests
from typer.testing import CliRunner

from cellmill.cli import app
from cellmill.config import load_config
from cellmill.errors import DownloadError
from cellmill.ingestion.datasets import fetch
from cellmill.serving.config import ServeConfig
from cellmill.serving.server import running
from tests.system.documents import blocks, commands, configurations

CELLS_PER_DONOR = 120
SERVE, ASK = "cellmill serve serve.yaml", "curl"


def run(command: str) -> dict[str, Any]:
    """Run a command with --json and return what it printed."""
    result = CliRunner().invoke(app, [*shlex.split(command)[1:], "--json"], catch_exceptions=False)
    assert result.exit_code == 0, f"{command}\n{result.output}"
    payload: dict[str, Any] = json.loads(result.stdout)
    return payload


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder, the working one, with the README's files: a few hundred real cells of four donors."""
    try:
        source = fetch("baron_human_pancreas")
    except DownloadError as error:
        pytest.skip(f"the public data set cannot be fetched: {error.what}")
    whole = ad.read_h5ad(source)
    donors = whole.obs["donor"].to_numpy()
    rows = [np.flatnonzero(donors == donor)[:CELLS_PER_DONOR] for donor in np.unique(donors)]
    cells = whole[np.sort(np.concatenate(rows))].copy()
    cells.write_h5ad(tmp_path / "pancreas.h5ad")
    cells[cells.obs["donor"] == "human4"].copy().write_h5ad(tmp_path / "query.h5ad")
    for name, text in configurations().items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_from_a_file_to_an_answer_and_back(folder: Path) -> None:
    walk = [line for line in commands() if line.startswith("cellmill") and "help" not in line and line != SERVE]
    results = {line: run(line) for line in walk}

    ingested = results["cellmill ingest ingest.yaml"]
    assert ingested["reports"][0]["cells_out"] == 4 * CELLS_PER_DONOR
    again = run("cellmill ingest ingest.yaml")
    assert (again["snapshot"], again["changed"]) == (ingested["snapshot"], False)
    scores = results["cellmill finetune annotate.yaml"]["scores"]
    assert scores["fine-tuned"]["accuracy"] > scores["majority class"]["accuracy"] + 0.1
    assert ad.read_h5ad("embedded.h5ad").obsm["X_cellmill"].shape == (CELLS_PER_DONOR, 64)
    (source,) = results["cellmill lineage labelled.h5ad --root runs"]["sources"]
    assert source["location"] == str(folder / "pancreas.h5ad")
    assert source["facts"]["licence"] == "MIT"
    assert "data:image/png" in Path("report.html").read_text()
    check_served(folder)


def check_served(folder: Path) -> None:
    """Serve as the README does, ask as its curl does, and hold the answers against the offline predictions."""
    config = load_config(ServeConfig, "serve.yaml", ["port=8642"])
    (ask,) = [shlex.split(line) for line in commands() if line.startswith(ASK)]
    with running(config) as url:
        names = [card["name"] for card in requests.get(f"{url}/v1/models", timeout=30).json()["models"]]
        route = ask[-1].partition(":8000")[2]
        kind, _, value = ask[ask.index("-H") + 1].partition(": ")
        body = Path(ask[ask.index("--data-binary") + 1].removeprefix("@")).read_bytes()
        answer = requests.post(url + route, data=body, headers={kind: value}, timeout=120)
        mouse = {"genes": ["Ins1", "Gcg", "Sst", "Actb", "Gapdh"], "cells": [{"counts": [9, 1, 2, 8, 7]}]}
        refused = requests.post(url + route, json=mouse, timeout=60)
    assert sorted(names) == ["annotation", "embedding"]
    assert answer.status_code == 200, answer.text
    told = answer.json()
    offline = ad.read_h5ad("labelled.h5ad").obs
    assert told["labels"] == offline["cellmill_label"].astype(str).tolist()
    np.testing.assert_allclose(told["confidence"], offline["cellmill_confidence"], atol=1e-5)
    assert 400 <= refused.status_code < 500
    assert set(refused.json()["error"]) == {"kind", "what", "where", "fix"}
    Path("answer.json").write_text(answer.text)
    assert len(run(f"cellmill lineage answer.json --root {folder}")["sources"]) == 1


@pytest.mark.slow
def test_the_notebook_way_needs_no_cluster(folder: Path) -> None:
    (block,) = blocks("python")
    # The model that the last line uses comes out of the walk above; here the one just trained is at hand.
    code = block[: block.index("labelled = ")] + "import ray; assert not ray.is_initialized()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
