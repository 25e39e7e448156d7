"""The batcher: order kept, budget kept, no cross-talk, no request starved, faults told only to their cause."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellmill.serving.batching import Part, TokenBatcher
from cellmill.serving.errors import OverloadedError, TooLargeError

Request = tuple[int, np.ndarray]
BUDGET = 20


class Recorder:
    """Answers each item with (request, position) and keeps what it was asked."""

    def __init__(self, broken: frozenset[int] = frozenset()) -> None:
        self.broken = broken
        self.batches: list[list[Part[Request]]] = []

    def __call__(self, parts: Sequence[Part[Request]]) -> list[list[tuple[int, int]]]:
        self.batches.append(list(parts))
        if any(part.payload[0] in self.broken for part in parts):
            raise ValueError("broken")
        return [[(part.payload[0], i) for i in range(part.start, part.stop)] for part in parts]

    def weights(self) -> list[int]:
        return [sum(int(p.payload[1][p.start : p.stop].sum()) for p in batch) for batch in self.batches]


def weights(values: list[int]) -> np.ndarray:
    return np.array(values, dtype=np.int64)


async def submit_all(run: Recorder, requests: list[list[int]], linger: float = 0.0) -> list[object]:
    batcher: TokenBatcher[Request, list[tuple[int, int]]] = TokenBatcher(
        run, budget=BUDGET, max_queued=10**9, linger=linger
    )
    jobs = [batcher.submit((i, weights(items)), weights(items)) for i, items in enumerate(requests)]
    results = await asyncio.wait_for(asyncio.gather(*jobs, return_exceptions=True), 30)
    batcher.close()
    return list(results)


REQUESTS = st.lists(st.lists(st.integers(1, BUDGET), max_size=30), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(REQUESTS)
def test_order_budget_and_no_cross_talk(requests: list[list[int]]) -> None:
    run = Recorder()
    results = asyncio.run(submit_all(run, requests))
    for i, (items, parts) in enumerate(zip(requests, results, strict=True)):
        assert isinstance(parts, list)
        assert [item for part in parts for item in part] == [(i, at) for at in range(len(items))]
    assert all(0 < weight <= BUDGET for weight in run.weights())
    total = sum(map(sum, requests))
    assert sum(run.weights()) == total


@settings(max_examples=30, deadline=None)
@given(REQUESTS, st.sets(st.integers(0, 7)))
def test_only_requests_at_fault_fail(requests: list[list[int]], broken: set[int]) -> None:
    results = asyncio.run(submit_all(Recorder(frozenset(broken)), requests))
    for i, (items, parts) in enumerate(zip(requests, results, strict=True)):
        if i in broken and items:
            assert isinstance(parts, ValueError)
        else:
            assert isinstance(parts, list)
            assert [item for part in parts for item in part] == [(i, at) for at in range(len(items))]


def test_a_small_request_does_not_wait_for_a_large_one() -> None:
    run = Recorder()
    asyncio.run(submit_all(run, [[5] * 400, [5]]))
    first = next(i for i, batch in enumerate(run.batches) if any(part.payload[0] == 1 for part in batch))
    assert first <= 1
    assert len(run.batches) <= 102


def test_concurrent_requests_share_a_batch() -> None:
    run = Recorder()
    asyncio.run(submit_all(run, [[4], [4], [4], [4]], linger=0.01))
    assert len(run.batches) == 1


def test_an_item_above_the_budget_is_refused() -> None:
    (result,) = asyncio.run(submit_all(Recorder(), [[1, BUDGET + 1]]))
    assert isinstance(result, TooLargeError)


def test_a_full_queue_refuses_and_recovers() -> None:
    async def scene() -> None:
        batcher: TokenBatcher[int, int] = TokenBatcher(
            lambda parts: [1] * len(parts), budget=10, max_queued=30, linger=0.02
        )
        first = asyncio.create_task(batcher.submit(0, weights([10] * 5)))
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError):
            await batcher.submit(1, weights([10]))
        assert await first == [1] * 5
        assert await batcher.submit(2, weights([10])) == [1]
        batcher.close()

    asyncio.run(scene())


def test_a_request_given_up_leaves_the_queue() -> None:
    run = Recorder()

    async def scene() -> None:
        batcher: TokenBatcher[Request, list[tuple[int, int]]] = TokenBatcher(
            run, budget=BUDGET, max_queued=100, linger=0.05
        )
        gone = asyncio.create_task(batcher.submit((0, weights([10] * 9)), weights([10] * 9)))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        assert await batcher.submit((1, weights([10] * 9)), weights([10] * 9))
        batcher.close()

    asyncio.run(scene())
    computed = [part.stop - part.start for batch in run.batches for part in batch if part.payload[0] == 0]
    assert sum(computed) <= 2, "what was already in a batch, and no more"
