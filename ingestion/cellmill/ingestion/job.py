"""Ingestion's edge to Ray: chunks and shards as Ray Data tasks, plans as tasks of their own."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any
from uuid import uuid4

import ray
from ray.exceptions import RayError, RayTaskError

import cellmill.errors
from cellmill.cluster import ClusterConfig, connect
from cellmill.errors import CellmillError, ResourceError
from cellmill.ingestion.backend import Row, T
from cellmill.ingestion.telling import Watched, telling

_RETRIES = 2
"""How often a task whose worker died is tried again. Without a bound Ray would try for ever."""


_UNDER_WAY = 256
"""Tasks that are known to Ray at a time; more would only make it slower to ask which have finished."""

_LOOK_S = 5.0
"""After so long without a result, it is shown what tasks are at."""

_PROCESS_MB = 400
"""Memory of a worker with all libraries loaded, before it has read a cell."""


class RayBackend:
    """Runs tasks on a Ray cluster, one CPU each: those of `map` through Ray Data, for they stream many rows.

    Parameters
    ----------
    config
        Which cluster.
    task_memory_mb
        Memory of a task for cells, beside that of its process; Ray places no more tasks on a node than fit.

    Raises
    ------
    ResourceError
        No node has so much memory.
    """

    def __init__(self, config: ClusterConfig, task_memory_mb: float) -> None:
        connect(config)
        self._memory = int((task_memory_mb + _PROCESS_MB) * 1e6)
        largest = max(node["Resources"].get("memory", 0.0) for node in ray.nodes() if node["Alive"])
        if largest < self._memory:
            raise ResourceError(
                f"A task needs {self._memory / 1e6:,.0f} MB ({task_memory_mb:,.0f} for cells, {_PROCESS_MB} for its "
                f"process); the largest node of the cluster offers {largest / 1e6:,.0f} MB.",
                where="task_memory_mb",
                fix="Lower `task_memory_mb`, or start a node with more memory (`ray start --memory=BYTES`).",
            )
        ray.data.DataContext.get_current().enable_progress_bars = False

    def map(self, function: Callable[[int], Row], n: int) -> Iterator[Row]:
        """Yield the results as tasks finish.

        Raises
        ------
        CellmillError
            The first that a task raised.
        ResourceError
            A task's worker died, time after time.
        """
        if not n:
            return
        numbers: Any = ray.data.range(n, override_num_blocks=n)
        with warnings.catch_warnings():
            # Ray has no other way yet to bound retries; unbounded, a task that kills its worker runs for ever.
            warnings.simplefilter("ignore", category=DeprecationWarning)
            rows = numbers.map(_Task(function), num_cpus=1, memory=self._memory, ray_remote_args_fn=_options)
        try:
            for row in rows.iter_rows():
                if row["error"]:
                    raise _rebuilt(json.loads(row["error"]))
                yield json.loads(row["plain"]) | {key: row[key] for key in row if key not in ("error", "plain")}
        except RayError as error:
            raise _died("ingestion", error) from error

    def gather(self, function: Callable[[int], T], names: Sequence[str]) -> Iterator[tuple[int, T]]:
        """Yield numbers and results as tasks finish.

        Raises
        ------
        CellmillError
            The first that a task raised.
        ResourceError
            A task's worker died, time after time.
        """
        held, board = ray.put(function), f"cellmill-{uuid4().hex}"
        start = _gathered.options(memory=self._memory)
        left = iter(range(len(names)))
        tasks = {start.remote([held], number, board): number for number in islice(left, _UNDER_WAY)}
        watched = Watched(board)
        try:
            while tasks:
                finished, _ = ray.wait(list(tasks), num_returns=1, timeout=_LOOK_S)
                if not finished:
                    watched.show()
                for done in finished:
                    number = tasks.pop(done)
                    tasks |= {start.remote([held], following, board): following for following in islice(left, 1)}
                    yield number, _result(done, names[number])
        finally:
            watched.close()
            for task in tasks:
                ray.cancel(task)


@ray.remote(num_cpus=1, max_retries=_RETRIES)
def _gathered(held: list[ray.ObjectRef[Any]], number: int, board: str) -> Any:
    try:
        with telling(board):
            return _loaded(held[0])(number)
    except CellmillError as error:
        # As a result, for Ray would add its own account of it.
        return error


def _result(task: ray.ObjectRef[Any], name: str) -> Any:
    try:
        found = ray.get(task)
    except RayTaskError:
        # Nobody expected it: what Ray says of it is what there is.
        raise
    except RayError as error:
        raise _died(name, error) from error
    if isinstance(found, CellmillError):
        raise found
    return found


class _Task:
    """A task whose errors travel as data, so that they arrive as they were raised.

    Its function holds plans and a vocabulary, which take longer to unpickle than many a task takes to run: a worker
    does so once.
    """

    def __init__(self, function: Callable[[int], Row]) -> None:
        self._function = ray.put(function)

    def __call__(self, row: Row) -> Row:
        try:
            found = _loaded(self._function)(int(row["id"]))
        except CellmillError as error:
            return {"error": json.dumps({"type": type(error).__name__, **error.as_dict()}), "plain": "{}"}
        arrays = {key: value for key, value in found.items() if hasattr(value, "dtype")}
        plain = {key: value for key, value in found.items() if key not in arrays}
        return {"error": "", "plain": json.dumps(plain), **arrays}


@lru_cache(maxsize=1)
def _loaded(function: ray.ObjectRef[Any]) -> Callable[[int], Any]:
    found: Callable[[int], Any] = ray.get(function)
    return found


def _options() -> dict[str, int]:
    return {"max_retries": _RETRIES}


def _died(where: str, error: RayError) -> ResourceError:
    return ResourceError(
        f"A task failed {_RETRIES + 1} times in a row ({type(error).__name__}).",
        where=where,
        fix="If memory ran out, lower `task_memory_mb` or `shard_cells`; Ray's log says more.",
    )


def _rebuilt(error: dict[str, str]) -> CellmillError:
    kind: type[CellmillError] = getattr(cellmill.errors, error["type"], CellmillError)
    return kind(error["what"], where=error["where"], fix=error["fix"])
