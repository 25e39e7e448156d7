import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cellmill.atlas import Atlas
from cellmill.errors import CountsError, ResourceError
from cellmill.ingestion import ingest
from tests.ingestion.cells import config, counts, expected, make_adata, write


@pytest.mark.usefixtures("ray_cluster")
def test_ray_and_local_make_the_same_shards(tmp_path: Path) -> None:
    first, second = make_adata(60, seed=1), make_adata(40, seed=2, start=20)
    paths = write(first, tmp_path / "a.h5ad"), write(second, tmp_path / "b.h5ad")
    results = {
        backend: ingest(config(tmp_path / backend, *paths, shard_cells=25, backend=backend))
        for backend in ("local", "ray")
    }
    local, remote = (Atlas.open(tmp_path / backend).snapshot() for backend in ("local", "ray"))
    assert [(e.key, e.checksum) for e in local.shards] == [(e.key, e.checksum) for e in remote.shards]
    assert results["ray"].reports == results["local"].reports
    pd.testing.assert_frame_equal(counts(tmp_path / "ray"), expected([first, second]))
    assert not ingest(config(tmp_path / "ray", *paths, shard_cells=25, backend="ray")).changed


@pytest.mark.usefixtures("ray_cluster")
def test_an_error_in_a_task_arrives_as_it_was_raised(tmp_path: Path) -> None:
    adata = make_adata(2000, seed=3)
    data = adata.X.data.copy()
    data[data.size // 2] = 0.25
    adata.X = sparse.csr_matrix((data, adata.X.indices, adata.X.indptr), adata.shape)
    path = write(adata, tmp_path / "a.h5ad")
    with pytest.raises(CountsError, match="not integers") as caught:
        ingest(config(tmp_path / "atlas", path, backend="ray"))
    assert str(path) in caught.value.where
    assert Atlas.open(tmp_path / "atlas").snapshot().version == 0


def dies(number: int) -> dict[str, Any]:
    os._exit(1)


def arrays(number: int) -> dict[str, Any]:
    return {"number": number, "text": "x" * number, "values": np.arange(number)}


@pytest.mark.usefixtures("ray_cluster")
def test_tasks_return_arrays_and_a_dying_one_ends_the_run() -> None:
    from cellmill.cluster import ClusterConfig
    from cellmill.ingestion.job import RayBackend

    backend = RayBackend(ClusterConfig(), task_memory_mb=64)
    rows = sorted(backend.map(arrays, 3), key=lambda row: int(row["number"]))
    assert [(row["number"], row["text"], list(row["values"])) for row in rows] == [
        (n, "x" * n, list(range(n))) for n in range(3)
    ]
    with pytest.raises(ResourceError, match="3 times"):
        list(backend.map(dies, 1))


@pytest.mark.usefixtures("ray_cluster")
def test_a_task_that_no_node_has_the_memory_for_is_refused_at_the_start(tmp_path: Path) -> None:
    path = write(make_adata(10), tmp_path / "a.h5ad")
    with pytest.raises(ResourceError, match=r"A task needs 100,000,400 MB") as caught:
        ingest(config(tmp_path / "atlas", path, backend="ray", task_memory_mb=100_000_000))
    assert "task_memory_mb" in caught.value.fix
    assert not (tmp_path / "atlas").exists()


def memory_of_this_task(number: int) -> dict[str, Any]:
    import ray

    return {"memory": ray.get_runtime_context().get_assigned_resources().get("memory", 0)}


@pytest.mark.usefixtures("ray_cluster")
def test_tasks_declare_their_memory() -> None:
    from cellmill.cluster import ClusterConfig
    from cellmill.ingestion.job import RayBackend

    (row,) = RayBackend(ClusterConfig(), task_memory_mb=100).map(memory_of_this_task, 1)
    assert row["memory"] == 500e6
