"""The training loop: global steps of micro-batches, the same on one process and on many."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from cellmill.errors import ConfigError
from cellmill.tokens import PackedBatch
from cellmill.training.collation import Collator, Upcoming
from cellmill.training.engine import Engine
from cellmill.training.meter import Meter
from cellmill.training.schedule import OptimizerConfig, learning_rate
from cellmill.training.task import Task


class Source(Protocol):
    """Where a rank's cells come from, step by step; see `cellmill.stream.Stream`."""

    @property
    def steps_per_epoch(self) -> int:
        """Global steps of one pass over the cells."""
        ...

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[PackedBatch]:
        """Yield this rank's cells of each global step."""
        ...


@dataclass(frozen=True)
class LoopConfig:
    """What the loop needs to know.

    Attributes
    ----------
    total_steps
        Optimizer steps of the whole run.
    optimizer
        For the learning rate.
    seed
        Of dropout; its random numbers depend on seed, step and rank alone, so no state of them is kept.
    log_every, save_every
        Steps between metrics, and between checkpoints.
    """

    total_steps: int
    optimizer: OptimizerConfig
    seed: int
    log_every: int
    save_every: int


Split = Callable[[PackedBatch], Sequence[PackedBatch]]
Log = Callable[[Mapping[str, float], int], None]
Save = Callable[[int], None]


def run_loop(
    engine: Engine,
    source: Source,
    split: Split,
    collate: Collator,
    task: Task,
    config: LoopConfig,
    *,
    start: int,
    log: Log,
    save: Save,
) -> None:
    """Train from step `start` to the end.

    Each step: its cells in parts, one a forward pass; the number of targets summed over parts and ranks; the loss of
    each part divided by it and sent backward; one update.

    Parameters
    ----------
    engine
        Holds the model.
    source
        The cells.
    split
        Cuts a rank's cells of a step into parts, as many on every rank; some may be empty. Collective.
    collate
        Makes tensors of the parts and brings them to the device.
    task
        Objective and its count of targets.
    config
        Length, learning rate and intervals.
    start
        Steps taken before.
    log
        Called on every rank with metrics that are equal on all, and the number of steps taken.
    save
        Called on every rank with the number of steps taken; collective.

    Raises
    ------
    ConfigError
        The loss is not finite any more. No checkpoint of such a state is written.
    """
    engine.train()
    meter = Meter(engine.device)
    rank = torch.distributed.get_rank()
    per_epoch = source.steps_per_epoch
    done = start
    while done < config.total_steps:
        steps = source.epoch(done // per_epoch, done % per_epoch)
        upcoming = Upcoming(steps, split, collate)
        while (parts := upcoming.take()) is not None:
            torch.manual_seed(_mix(config.seed, done, rank))
            n_targets = _global_sum(sum(task.targets(part) for part in parts), engine.device)
            for part in parts:  # an empty one takes part too: ZeRO counts forward and backward passes
                loss, result = engine(part, done)
                engine.backward(loss / max(n_targets, 1))
                meter.feed(result, n_cells=part.n_cells, n_tokens=part.n_tokens)
            meter.step([part.n_tokens for part in parts])
            rate = learning_rate(config.optimizer, done, config.total_steps)
            done += 1
            end = done == config.total_steps
            saving = end or done % config.save_every == 0
            if not saving:  # a checkpoint counts damaged cells up to its own step
                upcoming.prepare()
            norm = engine.step(rate)
            if not math.isfinite(norm):
                raise _diverged(done)
            # Metrics are read with every checkpoint, so that a resumed run has the lines of an undisturbed one.
            if saving or done % config.log_every == 0:
                log({**meter.read(), "lr": rate, "grad_norm": norm, "epoch": done / per_epoch}, done)
            if saving:
                save(done)
            if end:
                return


def _mix(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1)


def _global_sum(value: int, device: torch.device) -> int:
    total = torch.tensor(value, dtype=torch.int64, device=device)
    torch.distributed.all_reduce(total)
    return int(total)


def _diverged(step: int) -> ConfigError:
    return ConfigError(
        f"The gradient is not finite at step {step}: training has diverged.",
        where="optimizer",
        fix="Lower optimizer.lr or lengthen optimizer.warmup, and start a new run.",
    )
