"""The stream's edge to Ray: one Dataset for each training worker, one read task for each group.

`streaming_split` cannot carry identity (its assignment depends on the number of splits and on block sizes), so each
worker reads a Dataset of its own, in order, and checks that every group is the one it expects.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Generator, Iterable
from itertools import islice
from typing import Any

import pyarrow as pa
import ray
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from cellmill import errors
from cellmill.errors import CellmillError, IntegrityError, ResourceError
from cellmill.memory import Memory
from cellmill.stream.config import StreamConfig
from cellmill.stream.group import GroupWork, MadeGroup
from cellmill.stream.losses import Lost
from cellmill.tokens import PackedBatch, Tokeniser

START_SECONDS = 60.0
"""How long a first data task may wait for a CPU before the stream is refused."""

_GROUPS_PER_DATASET = 256
_NAME, _ERROR, _LOST = "group", "error", "lost"
_MEMORY = Memory()
"""Where the data tasks of this process make their groups, one after the other."""


def ray_groups(
    work: Iterable[GroupWork], tokeniser: Tokeniser, config: StreamConfig, world_size: int
) -> Generator[MadeGroup, None, None]:
    """Yield groups in order, made by Ray Data tasks on any node; only packed arrays travel.

    The arrays are read-only views of the object store.

    Parameters
    ----------
    work
        What to make.
    tokeniser
        How.
    config
        CPUs and object store of all workers together, and how often a task that dies is tried again.
    world_size
        Number of workers that share them.

    Raises
    ------
    ResourceError
        No CPU is left for data tasks, or one died time after time; the message names its windows.
    IntegrityError
        A shard is damaged, or a group came that was not expected.
    """
    share = config.data_cpus / world_size
    cpus = min(1.0, share)
    _require_cpu(cpus)
    shared = ray.put(tokeniser)
    todo = iter(work)
    # A Dataset at a time, so that the description of an epoch of any length takes little memory.
    while part := list(islice(todo, _GROUPS_PER_DATASET)):
        yield from _dataset(part, shared, config, cpus, share, world_size)


def _dataset(
    part: list[GroupWork], tokeniser: Any, config: StreamConfig, cpus: float, share: float, world_size: int
) -> Generator[MadeGroup, None, None]:
    with ray.data.DataContext.current(_context(config, cpus, share, world_size)), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = ray.data.read_datasource(
            _Groups(part, tokeniser),
            override_num_blocks=len(part),
            num_cpus=cpus,
            # Unbounded, a task that kills its worker would be tried again for ever.
            ray_remote_args={"max_retries": config.task_retries},
        )
        tables: Any = iter(dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1))
    try:
        for i, group in enumerate(part):
            try:
                table = next(tables, None)
            except RayTaskError as error:
                raise _unexpected(error, group) from error
            except RayError as error:
                raise _died(part[i:], tokeniser, cpus, config.task_retries, error) from error
            yield _made(table, group)
        if (extra := next(tables, None)) is not None:
            raise IntegrityError(f"One group too many came: {extra[_NAME][0].as_py()}.", where=part[-1].name)
    finally:
        tables.close()


def _context(config: StreamConfig, cpus: float, share: float, world_size: int) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    # A group is one block: split or merged, it would no longer be one row.
    context.target_max_block_size = None
    context.execution_options.preserve_order = True
    context.execution_options.verbose_progress = False
    # Each Dataset believes that it owns the cluster.
    context.execution_options.resource_limits = ray.data.ExecutionResources.for_limits(
        cpu=max(share, cpus), object_store_memory=config.object_store_mb * 1e6 / world_size
    )
    return context


def _made(table: pa.Table | None, group: GroupWork) -> MadeGroup:
    """Return what a task made, after checking that it is what was expected."""
    if table is None:
        raise IntegrityError("The stream ended before its last group.", where=group.name)
    if (found := table[_NAME][0].as_py()) != group.name:
        raise IntegrityError(f"Another group came: {found}.", where=group.name)
    if _ERROR in table.column_names:
        raise _decode(table[_ERROR][0].as_py())
    lost = Lost.from_json(table[_LOST][0].as_py()) if _LOST in table.column_names else None
    return MadeGroup(PackedBatch.from_table(table), lost)


class _Groups(Datasource):
    def __init__(self, groups: list[GroupWork], tokeniser: Any) -> None:
        begin: Callable[[], None] = super().__init__
        begin()
        self._list = groups
        self._tokeniser = tokeniser

    def get_name(self) -> str:
        return "Cells"

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        return [
            ReadTask(
                _task(group, self._tokeniser),
                BlockMetadata(num_rows=1, size_bytes=None, input_files=None, exec_stats=None),
            )
            for group in self._list
        ]


def _task(group: GroupWork, tokeniser: Any) -> Callable[[], Iterable[pa.Table]]:
    def read() -> Iterable[pa.Table]:
        yield _make(group, tokeniser)

    return read


def _make(group: GroupWork, tokeniser: Any) -> pa.Table:
    name = pa.array([group.name])
    try:
        made = group.make(ray.get(tokeniser), _MEMORY)
    except CellmillError as error:
        # As data, because Ray wraps exceptions so that they can no longer be told apart.
        told = json.dumps({"type": type(error).__name__, **error.as_dict()})
        return pa.table({_NAME: name, _ERROR: pa.array([told])})
    table = made.packed.to_table().append_column(_NAME, name)
    return table if made.lost is None else table.append_column(_LOST, pa.array([made.lost.to_json()]))


def _decode(told: str) -> CellmillError:
    fields = json.loads(told)
    kind: type[CellmillError] = getattr(errors, fields["type"], CellmillError)
    return kind(fields["what"], where=fields["where"], fix=fields["fix"])


def _require_cpu(cpus: float) -> None:
    """Run an empty task: if none gets a CPU, data tasks would wait for ever without a word."""
    probe = ray.remote(num_cpus=cpus, max_retries=0)(_nothing).remote()
    try:
        ray.get(probe, timeout=START_SECONDS)
    except GetTimeoutError as error:
        ray.cancel(probe, force=True)
        total = ray.cluster_resources().get("CPU", 0.0)
        free = ray.available_resources().get("CPU", 0.0)
        raise ResourceError(
            f"No CPU was free for data tasks in {START_SECONDS:.0f} s: each needs {cpus:g}, and {free:g} of {total:g} "
            "are free.",
            where="stream.data_cpus",
            fix="Give the workers fewer CPUs (fractions are fine), lower stream.data_cpus, or add nodes.",
        ) from error


def _nothing() -> None:
    return None


def _died(groups: list[GroupWork], tokeniser: Any, cpus: float, retries: int, error: RayError) -> ResourceError:
    """Find the group whose task dies: those that could have been under way are made one by one."""
    again = ray.remote(num_cpus=cpus, max_retries=0)(_only_make)
    what = f"A data task died {retries + 1} times in a row ({type(error).__name__})."
    fix = "See the logs of the node; too little memory for stream.group_mb is the usual cause."
    for group in groups[: 2 * max(1, int(ray.cluster_resources().get("CPU", 1.0) / cpus))]:
        try:
            ray.get(again.remote(group, tokeniser))
        except RayError:
            return ResourceError(what, where=group.name, fix=fix)
    return ResourceError(what, where=f"{groups[0].name}, or a later group", fix=fix)


def _only_make(group: GroupWork, tokeniser: Tokeniser) -> None:
    group.make(tokeniser)


def _unexpected(error: RayTaskError, group: GroupWork) -> CellmillError:
    return CellmillError(f"A data task failed: {str(error).strip().splitlines()[-1]}", where=f"{group.name}, or later")
