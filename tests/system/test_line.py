"""The whole line through the command line and HTTP: real cells, real Ray, DeepSpeed and Serve."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
from typer.testing import CliRunner

from cellmill.cli import app
from cellmill.errors import DownloadError
from cellmill.ingestion.datasets import fetch

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]

CELLS_PER_DONOR = 120


def run(*arguments: object) -> dict[str, Any]:
    """Run a command with --json and return what it printed."""
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    payload: dict[str, Any] = json.loads(result.stdout)
    return payload


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few hundred real cells of four donors."""
    try:
        source = fetch("baron_human_pancreas")
    except DownloadError as error:
        pytest.skip(f"the public data set cannot be fetched: {error.what}")
    whole = ad.read_h5ad(source)
    rows = [np.flatnonzero(whole.obs["donor"] == donor)[:CELLS_PER_DONOR] for donor in sorted(set(whole.obs["donor"]))]
    path = tmp_path_factory.mktemp("source") / "pancreas.h5ad"
    whole[np.sort(np.concatenate(rows))].copy().write_h5ad(path)
    return path
