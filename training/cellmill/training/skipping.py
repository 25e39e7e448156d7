"""Cells that training went without because their shards are damaged."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from cellmill.stream import Stream


def skipped_by_all(stream: Stream, before: Mapping[str, int], device: torch.device) -> dict[str, int]:
    """Return the cells that all ranks have left out since the run began, by shard; collective.

    Parameters
    ----------
    stream
        This rank's.
    before
        What had been left out when the stream was made.
    device
        Where sums over ranks are made.
    """
    if stream.config.on_corrupt == "stop":
        return dict(before)
    mine = stream.skipped
    counts = torch.tensor([mine.get(name, 0) for name in stream.shards], dtype=torch.int64, device=device)
    torch.distributed.all_reduce(counts)
    now = zip(stream.shards, counts.tolist(), strict=True)
    return {name: n + before.get(name, 0) for name, n in now if n or name in before}
