"""Connecting to Ray: the only place that starts or joins a cluster."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from cellmill.config import Config
from cellmill.errors import ResourceError


class ClusterConfig(Config):
    """Which Ray cluster to use.

    Attributes
    ----------
    address
        ``local`` starts one on this machine; ``auto`` or ``host:port`` joins one that runs. The environment variable
        ``RAY_ADDRESS`` decides where this is ``None``, and ``local`` is used without it.
    cpus
        CPUs of a local cluster; by default those of the machine.
    object_store_mb
        Object store of a local cluster in MB.
    """

    address: str | None = None
    cpus: int | None = None
    object_store_mb: int = 512


def connect(config: ClusterConfig | None = None) -> Literal["joined", "started", "present"]:
    """Connect this process to Ray, once; later calls find the connection there.

    Raises
    ------
    ResourceError
        No cluster answers at the address.
    """
    # Threads that wait must sleep: where data tasks and workers share the cores, spinning ones starve the others.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray
    import ray.data

    # Ray Data tells of every dataset that it starts and ends; progress is Cellmill's own to show. Importing it sets the
    # level of its logger, so that ours comes after.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # A local cluster asks for its token by default, and warns that it does.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    if ray.is_initialized():
        return "present"
    config = config or ClusterConfig()
    address = config.address or os.environ.get("RAY_ADDRESS") or "local"
    local = address == "local"
    options: dict[str, Any] = {"address": address, "logging_level": logging.WARNING}
    if local:
        options |= {
            "log_to_driver": False,
            "num_cpus": config.cpus or max(2, os.cpu_count() or 2),
            "object_store_memory": config.object_store_mb * 1024 * 1024,
            "include_dashboard": False,
        }
    try:
        ray.init(**options)
    except ConnectionError as error:
        raise ResourceError(
            "No Ray cluster answers.",
            where=address,
            fix="Start one with `ray start --head`, or leave the address out to use this machine.",
        ) from error
    return "started" if local else "joined"


def disconnect() -> None:
    """Leave the cluster, and stop it if `connect` started it."""
    import ray

    ray.shutdown()


@contextmanager
def leaving() -> Iterator[None]:
    """Leave, at the end of the block, the cluster that was joined or started within it."""
    before = _is_connected()
    try:
        yield
    finally:
        if not before and _is_connected():
            disconnect()


def _is_connected() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def require_cpus(workers: int, cpus_per_worker: float, data_cpus: float) -> None:
    """Refuse a job whose workers would leave no CPU for its data tasks, which would then wait for ever.

    Raises
    ------
    ResourceError
        The cluster has fewer CPUs than workers and data tasks need together.
    """
    import ray

    total = float(ray.cluster_resources().get("CPU", 0.0))
    needed = workers * cpus_per_worker + data_cpus
    if needed > total + 1e-6:
        data = f" and {data_cpus:g} CPU for data tasks" if data_cpus else ""
        raise ResourceError(
            f"{workers} workers x {cpus_per_worker:g} CPU{data} need {needed:g} CPUs; the cluster has {total:g}.",
            where="workers",
            fix="Lower workers.n or workers.cpus (fractions are fine), or add nodes.",
        )
