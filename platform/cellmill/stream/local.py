"""Groups read by threads of this process, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from cellmill.stream.groups import Group, Grouping
from cellmill.stream.reader import GroupReader
from cellmill.tokens import PackedBatch


def read_local(
    reader: GroupReader, grouping: Grouping, first: int, prefetch: int
) -> Iterator[tuple[Group, PackedBatch]]:
    """Yield the groups from `first` on, reading at most `prefetch` ahead."""
    pending: deque[tuple[Group, Future[PackedBatch]]] = deque()
    with ThreadPoolExecutor(max_workers=prefetch) as pool:
        try:
            for index in range(first, grouping.n_groups):
                group = grouping.group(index)
                pending.append((group, pool.submit(reader.read, group)))
                if len(pending) > prefetch:
                    group, future = pending.popleft()
                    yield group, future.result()
            while pending:
                group, future = pending.popleft()
                yield group, future.result()
        finally:
            for _, future in pending:
                future.cancel()
