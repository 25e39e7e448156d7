"""Fixtures that every part shares: one Ray cluster a session, and real data where it is at hand."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.dealing import Dealing, starts_ray

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED_DATA = REPOSITORY.parent / "shared" / "data"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Deal the tests where they run in several processes."""
    config.option.loadscopereorder = False
    return Dealing(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest, where others work on the rest meanwhile."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: not starts_ray(item.nodeid.partition("::")[0]))


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local cluster of 4 logical CPUs for the whole session."""
    from cellmill.cluster import ClusterConfig, connect, disconnect

    trainer: Any = importlib.import_module("ray.train.v2.api.data_parallel_trainer")

    # Ray Train waits 12 seconds for this cleaner at the end of each fit; here nothing is left to clean.
    trainer.PlacementGroupCleanerCallback = functools.partial(
        trainer.PlacementGroupCleanerCallback, check_interval_s=3600.0, stop_timeout=0.2
    )
    connect(ClusterConfig(address="local", cpus=4, object_store_mb=256))
    yield
    disconnect()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real data sets beside the checkout; tests that need it skip without it."""
    if not SHARED_DATA.is_dir():
        pytest.skip("real data sets are not at hand (no folder shared/data beside the checkout)")
    return SHARED_DATA
