"""Dynamic batching by a budget of tokens: cells of concurrent requests share forward passes."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from cellmill.serving.errors import OverloadedError, TooLargeError

P = TypeVar("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Part(Generic[P]):
    """Consecutive items of one request.

    Parameters
    ----------
    payload
        What was submitted.
    start, stop
        Which of its items are meant.
    """

    payload: P
    start: int
    stop: int


@dataclass(eq=False)
class _Job(Generic[P, R]):
    payload: P
    ends: npt.NDArray[np.int64]
    done: asyncio.Future[list[R]]
    next: int = 0
    results: list[R] = field(default_factory=list)

    def reach(self, start: int, allowance: int) -> int:
        """Return the largest stop such that the items from `start` to it weigh at most `allowance`."""
        before = int(self.ends[start - 1]) if start else 0
        return int(np.searchsorted(self.ends, before + allowance, side="right"))

    def weight(self, start: int, stop: int) -> int:
        return int(self.ends[stop - 1] - (self.ends[start - 1] if start else 0)) if stop > start else 0


class TokenBatcher(Generic[P, R]):
    """Collects items of concurrent requests into batches of bounded weight.

    Each request's items are computed in order and its results never mix with another's. Requests that wait share a
    batch evenly, so that a small one does not wait for the whole of a large one. A batch that fails is computed again
    request by request, so that only the request at fault is told so.

    Parameters
    ----------
    run
        Computes a batch: gets parts of requests, returns one result for each. Called in `executor`, once at a time.
    budget
        Largest weight of a batch.
    max_queued
        Weight that may wait; a request beyond is refused, unless nothing waits.
    linger
        Seconds that a batch waits for more when it is not full.
    executor
        Where `run` is called; None is the event loop's own threads.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Part[P]]], Sequence[R]],
        *,
        budget: int,
        max_queued: int,
        linger: float = 0.0,
        executor: Executor | None = None,
    ) -> None:
        self.run = run
        self.budget = budget
        self.max_queued = max_queued
        self.linger = linger
        self.executor = executor
        self._waiting: deque[_Job[P, R]] = deque()
        self._queued = 0
        self._arrived = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None

    async def submit(self, payload: P, weights: npt.NDArray[np.int64]) -> list[R]:
        """Compute all items of a request and return the results of its parts, in order.

        Parameters
        ----------
        payload
            The request.
        weights : int64[n]
            Tokens of each item, at least 1.

        Raises
        ------
        TooLargeError
            One item is above the budget.
        OverloadedError
            Too much waits already.
        """
        if weights.size == 0:
            return []
        heaviest = int(weights.max())
        if heaviest > self.budget:
            raise TooLargeError(
                f"A cell has {heaviest:,} tokens; a batch holds {self.budget:,}.",
                where="cells",
                fix="Raise max_tokens_per_batch of the model.",
            )
        total = int(weights.sum())
        if self._queued and self._queued + total > self.max_queued:
            raise OverloadedError(
                f"{self._queued:,} tokens wait already.", where="queue", fix="Try again later, or send fewer cells."
            )
        job: _Job[P, R] = _Job(payload, np.cumsum(weights), asyncio.get_running_loop().create_future())
        self._waiting.append(job)
        self._queued += total
        self._arrived.set()
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        try:
            return await job.done
        finally:
            self._drop(job)

    def close(self) -> None:
        """Stop; requests that wait are cancelled."""
        if self._worker is not None:
            self._worker.cancel()
        for job in list(self._waiting):
            job.done.cancel()

    async def _work(self) -> None:
        while True:
            while not self._waiting:
                self._arrived.clear()
                await self._arrived.wait()
            if self.linger and self._queued < self.budget:
                await asyncio.sleep(self.linger)
            taken = self._take()
            if taken:
                await self._compute(taken)

    def _take(self) -> list[tuple[_Job[P, R], Part[P]]]:
        """Choose the next batch: first an even share for each request that waits, then whatever fits."""
        jobs = list(self._waiting)
        stops = {id(job): job.next for job in jobs}
        room = self.budget
        for share in (max(1, self.budget // max(1, len(jobs))), self.budget):
            for i, job in enumerate(jobs):
                at = stops[id(job)]
                # The first in the queue always moves, however small the shares are.
                allowance = room if i == 0 and at == job.next and job.reach(at, share) == at else min(share, room)
                stops[id(job)] = job.reach(at, allowance)
                room -= job.weight(at, stops[id(job)])
        taken = []
        for job in jobs:
            stop = stops[id(job)]
            if stop > job.next:
                taken.append((job, Part(job.payload, job.next, stop)))
                self._queued -= job.weight(job.next, stop)
                job.next = stop
                self._waiting.remove(job)
                if stop < job.ends.size:
                    self._waiting.append(job)
        return taken

    async def _compute(self, taken: list[tuple[_Job[P, R], Part[P]]]) -> None:
        parts = [part for _, part in taken]
        try:
            results = await self._call(parts)
        except Exception as error:  # noqa: BLE001 - whatever it is belongs to the request that caused it
            if len(taken) > 1:
                for one in taken:
                    await self._compute([one])
            elif not taken[0][0].done.done():
                taken[0][0].done.set_exception(error)
                self._drop(taken[0][0])
            return
        for (job, _), result in zip(taken, results, strict=True):
            job.results.append(result)
            if job.next == job.ends.size and not job.done.done():
                job.done.set_result(job.results)

    async def _call(self, parts: list[Part[P]]) -> Sequence[R]:
        results = await asyncio.get_running_loop().run_in_executor(self.executor, self.run, parts)
        if len(results) != len(parts):
            raise RuntimeError(f"{len(parts)} parts were computed and {len(results)} results came back")
        return results

    def _drop(self, job: _Job[P, R]) -> None:
        """Forget what is left of a request that failed or was given up."""
        if job in self._waiting:
            self._waiting.remove(job)
            self._queued -= job.weight(job.next, job.ends.size)
