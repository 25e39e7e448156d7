"""Training on Ray: real workers, real data tasks, one of them killed."""

import contextlib
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch

from cellmill.errors import GeneMappingError, ResourceError
from cellmill.training import pretrain
from cellmill.training.checkpoint import newest
from cellmill.training.launch import launch
from cellmill.training.workers import WorkersConfig
from tests.training.test_pretraining import config

WORKERS = {"backend": "ray", "n": 2, "cpus": 0.5}


def kill_a_worker(checkpoints: Path, killed: list[int]) -> None:
    """Kill one training worker of this process's cluster, once there is a checkpoint."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list(checkpoints.glob("*/complete.json")):
        time.sleep(0.05)
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if " ".join(process.cmdline()).startswith("ray::RayTrainWorker"):
                process.kill()
                killed.append(process.pid)
                return


@pytest.mark.slow
def test_a_killed_worker_leaves_no_trace(atlas: str, tmp_path: Path, ray_cluster: None) -> None:
    stream = {"batch_size": 16, "lanes": 2, "backend": "ray", "data_cpus": 1}
    changes = {"steps": 32, "checkpoint": {"every_steps": 4}, "model": {"d_model": 16, "n_layers": 2, "n_heads": 2}}
    killed: list[int] = []
    killer = threading.Thread(target=kill_a_worker, args=(tmp_path / "ray" / "checkpoints", killed), daemon=True)
    killer.start()
    found = pretrain(config(atlas, tmp_path / "ray", workers=WORKERS, stream=stream, **changes))
    killer.join()
    assert len(killed) == 1
    lines = found.run.metrics()
    assert [line["step"] for line in lines] == list(range(1, 33))
    assert len(list((found.run.path / "ray").glob("start-*"))) == 2
    # The same cells in the same steps as one process without a cluster, so the same losses but for rounding.
    alone = pretrain(config(atlas, tmp_path / "alone", **changes))
    for ours, theirs in zip(lines[:12], alone.run.metrics()[:12], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
    marker = newest(found.run.path / "checkpoints")
    assert marker is not None
    assert marker.marker.world_size == 2
    assert sorted(marker.marker.files) == ["state-00000.safetensors", "state-00001.safetensors"]


def fail_on_one() -> None:
    if torch.distributed.get_rank() == 1:
        raise GeneMappingError("Not my genes.", where="rank 1", fix="Bring others.")
    torch.distributed.barrier()


@pytest.mark.slow
def test_an_error_in_a_worker_comes_home_as_it_was_raised(tmp_path: Path, ray_cluster: None) -> None:
    with pytest.raises(GeneMappingError, match="Not my genes") as error:
        launch(fail_on_one, WorkersConfig(n=2), run=tmp_path, data_cpus=None)
    assert error.value.fix == "Bring others."


def test_too_few_cpus_are_refused_before_anything_starts(atlas: str, tmp_path: Path, ray_cluster: None) -> None:
    greedy = config(
        atlas,
        tmp_path / "run",
        workers={"backend": "ray", "n": 2, "cpus": 2},
        stream={"batch_size": 16, "lanes": 2, "backend": "ray", "data_cpus": 1},
    )
    with pytest.raises(ResourceError, match="need 5 CPUs; the cluster has 4"):
        pretrain(greedy)
