"""Sums of metrics over steps, micro-batches and ranks."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from cellmill.training.objectives import ObjectiveResult


class Meter:
    """Metrics since the last reading; every metric is a sum and a count until it is read.

    Reading is collective: all ranks must have fed the same metrics.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._reset()

    def feed(self, result: ObjectiveResult, *, n_cells: int, n_tokens: int) -> None:
        """Add one forward pass over a batch of `n_cells` with `n_tokens`."""
        parts = {"loss": (result.loss_sum.detach(), result.count), **result.metrics}
        for name, (total, count) in parts.items():
            sums = self._sums.setdefault(name, torch.zeros(2, dtype=torch.float64, device=self._device))
            sums[0] += total.double()
            sums[1] += count
        self._sizes[0] += n_cells
        self._sizes[1] += n_tokens

    def step(self, tokens: Sequence[int]) -> None:
        """Add one optimizer step, by the tokens of each of its forward passes on this rank."""
        self._steps.append(sum(tokens))
        self._sizes[2] += len(tokens) * max(tokens)

    def read(self) -> dict[str, float]:
        """Return the means over all ranks and start again: loss, its parts, cells and tokens a second, and waiting.

        ``straggler_ratio`` is how many times the tokens of the mean rank the one with most has, over all steps;
        ``micro_batch_waste`` the share of time lost by passes that are shorter than the longest of their step and rank.
        """
        names = sorted(self._sums)
        flat = torch.cat([self._sizes, *(self._sums[name] for name in names)])
        slowest = torch.tensor(self._steps, dtype=torch.int64, device=self._device)
        torch.distributed.all_reduce(flat)
        torch.distributed.all_reduce(slowest, op=torch.distributed.ReduceOp.MAX)
        cells, tokens, passes, *rest = flat.tolist()
        seconds = max(time.perf_counter() - self._start, 1e-9)
        values = {name: rest[2 * i] / max(rest[2 * i + 1], 1.0) for i, name in enumerate(names)}
        values |= {"cells_per_second": cells / seconds, "tokens_per_second": tokens / seconds}
        values["straggler_ratio"] = int(slowest.sum()) * torch.distributed.get_world_size() / max(tokens, 1.0)
        values["micro_batch_waste"] = 1 - tokens / max(passes, 1.0)
        self._reset()
        return values

    def _reset(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._steps: list[int] = []
        self._sizes = torch.zeros(3, dtype=torch.float64, device=self._device)
        self._start = time.perf_counter()
