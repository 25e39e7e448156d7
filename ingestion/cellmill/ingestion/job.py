"""Ingestion's edge to Ray: chunks and shards as Ray Data tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray.exceptions import RayTaskError

from cellmill.cluster import ClusterConfig, connect
from cellmill.errors import CellmillError
from cellmill.ingestion.backend import Row


class RayBackend:
    """Runs tasks on a Ray cluster through Ray Data, one CPU each.

    Parameters
    ----------
    config
        Which cluster.
    """

    def __init__(self, config: ClusterConfig) -> None:
        connect(config)

    def map(self, function: Callable[[int], Row], n: int) -> Iterator[Row]:
        """Yield the results as tasks finish."""
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        rows: Any = ray.data.range(n, override_num_blocks=n)
        try:
            yield from rows.map(lambda row: function(int(row["id"])), num_cpus=1, max_retries=2).iter_rows()
        except RayTaskError as error:
            raise _ours(error) from error


def _ours(error: BaseException) -> BaseException:
    """Return the error of Cellmill inside one of Ray's, if there is one."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, CellmillError):
            return seen
        seen = getattr(seen, "cause", None) or seen.__cause__
    return error
