"""What `cellmill stream bench` measures on a small atlas."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from cellmill.atlas import Atlas
from cellmill.cli import app
from cellmill.stream.demand import GpuConfig
from tests.platform.stream.conftest import SIZES


def test_it_tells_rates_stages_and_mixing(stream_atlas: Atlas) -> None:
    n = sum(SIZES.values())
    command = ["stream", "bench", stream_atlas.url, "--batch-size", "64", "--by", "kind", "--by", "dataset", "--json"]
    result = CliRunner().invoke(app, [*command, "--cells", str(2 * n + 1)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["cells"], told["steps"]) == (3 * n, 3 * -(-n // 64))
    shards = stream_atlas.snapshot().shards
    assert told["disk_bytes_per_cell"] == pytest.approx(sum(entry.bytes for entry in shards) / n)
    genes = sum(entry.nnz for entry in stream_atlas.snapshot().shards) / n
    assert told["tokens_per_cell"] == pytest.approx(genes + 1)
    assert told["perceptual_per_cell"] == pytest.approx(1 + genes / 2, abs=0.6)
    assert told["tokens_per_second"] / told["cells_per_second"] == pytest.approx(told["tokens_per_cell"])
    assert sum(told["stages"].values()) == pytest.approx(1)
    assert min(told["stages"].values()) >= 0
    assert 0.9 < told["mixing"]["kind"] < 1.05
    assert 0.9 < told["mixing"]["dataset"] < 1.05
    assert [part["workers"] for part in told["sharing"]] == [1, 8, 64]
    assert [part["straggler_ratio"] >= 1 for part in told["sharing"]] == [True] * 3
    assert told["sharing"][0]["straggler_ratio"] == 1
    assert told["cores_per_gpu"] == pytest.approx(told["gpu_cells_per_second"] / told["cells_per_core_second"])


def test_the_operations_of_scgpts_shape_layer_by_layer() -> None:
    m, p, d, layers = 1200, 600, 512, 12
    products = [(m, d, 3 * d), (m, d, d), (m, d, d), (m, d, d)]  # query-key-value, output, two feed-forward
    forward = sum(2 * rows * inner * columns for rows, inner, columns in products)
    forward += 2 * 2 * d * (m * p + (m - p))  # scores and their use, over perceptual keys and the own one
    gpu = GpuConfig(tflops=1000, utilisation=0.5)
    assert gpu.flops_per_cell(m, p) == pytest.approx(3 * layers * forward)
    assert gpu.cells_per_second(m, p) == pytest.approx(5e14 / (3 * layers * forward))
