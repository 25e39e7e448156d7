"""Making groups in threads of this process."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from cellmill.memory import Memory
from cellmill.stream.config import StreamConfig
from cellmill.stream.group import GroupWork, MadeGroup, PlacedGroup
from cellmill.stream.rooms import StepRooms
from cellmill.tokens import Tokeniser


def local_groups(
    work: Iterable[GroupWork], tokeniser: Tokeniser, config: StreamConfig, memory: Memory, cells: int
) -> Generator[MadeGroup | PlacedGroup, None, None]:
    """Yield groups in order, `prefetch` of them made ahead in ``data_cpus`` threads; `cells` are those of a step.

    The kernels and the codecs run without the interpreter's lock, so threads are enough.
    """
    pending: deque[Future[MadeGroup | PlacedGroup]] = deque()
    todo = iter(work)
    rooms = StepRooms(memory, cells)
    pool = ThreadPoolExecutor(max(1, math.ceil(config.data_cpus)), thread_name_prefix="cellmill-stream")
    try:
        for item in todo:
            pending.append(pool.submit(item.make_in, rooms, tokeniser, memory))
            if len(pending) > config.prefetch:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
