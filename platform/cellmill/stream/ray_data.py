"""The stream's edge to Ray: one Dataset for each training worker, one read task for each group.

`streaming_split` cannot carry identity (its assignment depends on the number of splits and on block sizes), so each
worker reads a Dataset of its own, in order, and checks that every group is the one it expects.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyarrow as pa
import ray
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask
from ray.exceptions import RayError, RayTaskError

from cellmill.errors import CellmillError, IntegrityError
from cellmill.stream.config import StreamConfig
from cellmill.stream.groups import Group, Grouping
from cellmill.stream.reader import GroupReader
from cellmill.tokens import PackedBatch

_RETRIES = 3
_GROUP = "group"


def read_ray(
    reader: GroupReader, grouping: Grouping, first: int, config: StreamConfig, world_size: int
) -> Iterator[tuple[Group, PackedBatch]]:
    """Yield the groups from `first` on, read by Ray Data tasks on any node.

    Raises
    ------
    IntegrityError
        A shard is damaged, a task died time after time, or a group came that was not expected.
    """
    groups = [grouping.group(index) for index in range(first, grouping.n_groups)]
    if not groups:
        return
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # A group is one block: split or merged, it would no longer be one row.
    context.target_max_block_size = None
    context.execution_options.preserve_order = True
    context.execution_options.resource_limits = ray.data.ExecutionResources.for_limits(
        cpu=max(1.0, config.data_cpus / world_size),
        object_store_memory=config.object_store_mb * 1_000_000 / world_size,
    )
    with warnings.catch_warnings():
        # Ray has no other way yet to bound the retries of a read task; unbounded, one that kills its worker runs for ever.
        warnings.simplefilter("ignore", category=DeprecationWarning)
        dataset = ray.data.read_datasource(
            _Groups(reader, groups),
            override_num_blocks=len(groups),
            num_cpus=min(1.0, config.data_cpus),
            ray_remote_args={"max_retries": _RETRIES},
        )
    expected = iter(groups)
    try:
        for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=config.prefetch):
            group = next(expected)
            if table[_GROUP][0].as_py() != _identity(group):
                raise IntegrityError(
                    f"Group {table[_GROUP][0].as_py()} came where {_identity(group)} was expected.", where="stream"
                )
            yield group, PackedBatch.from_table(table)
    except RayTaskError as error:
        raise _ours(error) from error
    except RayError as error:
        group = next(expected, groups[-1])
        raise IntegrityError(
            f"A data task died {_RETRIES + 1} times in a row: {type(error).__name__}.",
            where=f"stream: epoch {group.epoch}, near group {group.index}",
            fix="See the task's log; too little memory for stream.group_cells is the usual cause.",
        ) from error
    if next(expected, None) is not None:
        raise IntegrityError("The stream ended before its last group.", where="stream")


class _Groups(Datasource):
    def __init__(self, reader: GroupReader, groups: list[Group]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._reader, self._list = reader, groups

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        metadata = BlockMetadata(num_rows=1, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(_task(self._reader, group), metadata) for group in self._list]


def _task(reader: GroupReader, group: Group) -> Callable[[], Iterable[pa.Table]]:
    def read() -> Iterable[pa.Table]:
        table = reader.read(group).to_table()
        yield table.append_column(_GROUP, pa.array([_identity(group)]))

    return read


def _identity(group: Group) -> str:
    return f"{group.epoch}/{group.index}/{group.n_cells}"


def _ours(error: BaseException) -> BaseException:
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, CellmillError):
            return seen
        seen = getattr(seen, "cause", None) or seen.__cause__
    return error
