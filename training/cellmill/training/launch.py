"""Starting the training function: in this process, or as a group of Ray Train workers."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cellmill import cluster
from cellmill.console import console
from cellmill.errors import CellmillError, ResourceError
from cellmill.training.checkpoint import newest
from cellmill.training.workers import WorkersConfig

Train = Callable[[], None]


def launch(train: Train, workers: WorkersConfig, *, run: Path, data_cpus: float | None) -> None:
    """Run `train` on every rank and wait for the end.

    Parameters
    ----------
    train
        Called once on each rank, with torch.distributed set up. It must resume from the newest checkpoint in `run`,
        because that is how it is started again when a worker was lost.
    workers
        How many, and on what.
    run
        The run's directory, which all workers see.
    data_cpus
        CPUs that the run's data tasks need beside the workers; None if it has no data tasks.

    Raises
    ------
    CellmillError
        What a worker raised, as it was raised there.
    ResourceError
        Too few CPUs, or workers were lost more often than `workers.retries` allows.
    """
    if workers.backend == "local":
        _launch_here(train, data_cpus)
    else:
        _launch_on_ray(train, workers, run, data_cpus or 0.0)


def _launch_here(train: Train, data_cpus: float | None) -> None:
    if data_cpus is not None:
        cluster.connect()
        cluster.require_cpus(0, 0.0, data_cpus)
    from cellmill.training.engine import prepare_process

    prepare_process()
    train()


def _launch_on_ray(train: Train, workers: WorkersConfig, run: Path, data_cpus: float) -> None:
    cluster.connect()
    cluster.require_cpus(workers.n, workers.cpus, data_cpus)
    from ray.train import TrainingFailedError, WorkerGroupError

    lost = 0
    while True:
        before = _steps(run)
        try:
            _fit(train, workers, run)
            return
        except TrainingFailedError as error:
            failures = error.worker_failures if isinstance(error, WorkerGroupError) else {}
            for failure in failures.values():
                if isinstance(failure, CellmillError):
                    raise failure from None
            own = [failure for failure in failures.values() if not _is_loss(failure)]
            if own:
                raise own[0] from error
            # A run that moves on between two losses may go on for ever; one that stands still may not.
            lost = 1 if _steps(run) > before else lost + 1
            if lost > workers.retries:
                raise ResourceError(
                    f"A training worker was lost {lost} times without a new checkpoint in between: "
                    f"{_first_line(error, failures)}",
                    where=str(run),
                    fix="Check the machine's memory (the kernel ends the largest process), then start again with "
                    "--resume.",
                ) from error
            console.print(f"A training worker was lost; starting again from step {_steps(run)}.", style="yellow")


def _fit(train: Train, workers: WorkersConfig, run: Path) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    gpu = workers.gpus > 0
    resources = {"CPU": workers.cpus} | ({"GPU": workers.gpus} if gpu else {})
    TorchTrainer(
        train,
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=workers.n, use_gpu=gpu, resources_per_worker=resources),
        # Each start is an experiment of its own: what to resume from is our marker's word, not Ray Train's.
        run_config=RunConfig(
            name=f"start-{time.time_ns()}",
            storage_path=str(run / "ray"),
            failure_config=FailureConfig(max_failures=0),
        ),
    ).fit()


def _is_loss(failure: BaseException) -> bool:
    """Tell a lost worker, and what the others see of it, from an error of the code."""
    text = str(failure).lower()
    collective = isinstance(failure, RuntimeError) and ("gloo" in text or "nccl" in text)
    return collective or type(failure).__module__.split(".")[0] == "ray"


def _steps(run: Path) -> int:
    checkpoint = newest(run / "checkpoints")
    return checkpoint.marker.steps if checkpoint else 0


def _first_line(error: Exception, failures: dict[int, Any]) -> str:
    text = str(next(iter(failures.values()), error)).strip()
    return text.splitlines()[0] if text else type(error).__name__
