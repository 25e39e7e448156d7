"""What the stream achieves on this machine and these cells: rates, where the time goes, how well batches are mixed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import numpy.typing as npt
import psutil

from cellmill.atlas import Selection
from cellmill.config import Config
from cellmill.stream.config import StreamConfig
from cellmill.stream.demand import GpuConfig
from cellmill.stream.layout import group_layout
from cellmill.stream.mixing import mixing
from cellmill.stream.reader import Buffers, read_block
from cellmill.stream.stream import Stream
from cellmill.tokens import PackedBatch, Tokeniser

STAGES = ("read and decode", "tokenise and pack", "deal into batches")


class StreamBench(Config):
    """What was measured.

    Attributes
    ----------
    cells, steps
        How much was streamed.
    cells_per_second, tokens_per_second
        By the clock.
    cells_per_core_second
        By the CPU time of all processes and threads.
    tokens_per_cell, perceptual_per_cell
        Means.
    disk_bytes_per_cell, batch_bytes_per_cell
        Of the shards' files, and of what goes to the GPU.
    stages
        Share of the CPU time by stage.
    mixing
        Entropy of each label within a global batch, as a share of that of random batches.
    gpu_cells_per_second, cores_per_gpu
        What the GPU would train on, and how many cores like these feed it.
    """

    cells: int
    steps: int
    cells_per_second: float
    tokens_per_second: float
    cells_per_core_second: float
    tokens_per_cell: float
    perceptual_per_cell: float
    disk_bytes_per_cell: float
    batch_bytes_per_cell: float
    stages: dict[str, float]
    mixing: dict[str, float]
    gpu_cells_per_second: float
    cores_per_gpu: float


@dataclass
class _Seen:
    """What the batches added up to."""

    cells: int = 0
    tokens: int = 0
    perceptual: int = 0
    bytes: int = 0
    sizes: list[int] = field(default_factory=list)
    codes: dict[str, list[npt.NDArray[np.int32]]] = field(default_factory=dict)

    def add(self, batch: PackedBatch) -> None:
        self.cells += batch.n_cells
        self.tokens += batch.n_tokens
        self.perceptual += int(batch.n_pcpt.sum())
        arrays = (batch.gene, batch.value, batch.condition, batch.masked, batch.cu_seqlens, batch.n_pcpt)
        self.bytes += sum(array.nbytes for array in arrays if array is not None)
        self.sizes.append(batch.n_cells)
        for name, codes in batch.labels.items():
            self.codes.setdefault(name, []).append(codes)


def bench(
    selection: Selection,
    tokeniser: Tokeniser,
    config: StreamConfig,
    *,
    by: Mapping[str, Sequence[str]],
    cells: int,
    gpu: GpuConfig,
) -> StreamBench:
    """Stream about `cells` cells and measure.

    Parameters
    ----------
    selection
        The cells.
    tokeniser, config
        How they are streamed.
    by
        Columns whose mixing is looked at, and their values.
    cells
        How many cells to time, after one group that warms up caches and compilers.
    gpu
        What they are to feed.

    Raises
    ------
    ConfigError
        No cell is selected, or a column does not exist.
    """
    stream = Stream(selection, tokeniser, config, labels={name: (name, list(by[name])) for name in by})
    read, tokenise, staged = _stages(stream, tokeniser, cells)
    cpu, wall, seen = _whole(stream, cells)
    alone, rest = read / staged, tokenise / staged
    per_cell = max(cpu / seen.cells, alone + rest)
    shares = (alone, rest, per_cell - alone - rest)
    demand = gpu.cells_per_second(seen.tokens / seen.cells, seen.perceptual / seen.cells)
    return StreamBench(
        cells=seen.cells,
        steps=len(seen.sizes),
        cells_per_second=seen.cells / wall,
        tokens_per_second=seen.tokens / wall,
        cells_per_core_second=seen.cells / cpu,
        tokens_per_cell=seen.tokens / seen.cells,
        perceptual_per_cell=seen.perceptual / seen.cells,
        disk_bytes_per_cell=_disk_bytes(selection),
        batch_bytes_per_cell=seen.bytes / seen.cells,
        stages={name: share / per_cell for name, share in zip(STAGES, shares, strict=True)},
        mixing=_mixing(selection, by, seen),
        gpu_cells_per_second=demand,
        cores_per_gpu=demand * cpu / seen.cells,
    )


def _stages(stream: Stream, tokeniser: Tokeniser, cells: int) -> tuple[float, float, int]:
    """Make groups one after the other in this thread; return CPU seconds of reading and of tokenising, and cells."""
    plan, buffers = stream.plan(0), Buffers()
    groups = list(stream.groups(plan, 0, 1))
    read = tokenise = 0.0
    done = 0
    # The first group comes twice: it warms up caches and compilers.
    for number, group in enumerate([groups[0], *groups]):
        work = stream.work(plan, group_layout(plan, group))
        began = time.thread_time()
        block = read_block(work.reading, buffers)
        between = time.thread_time()
        tokeniser.tokenise(block, seed=plan.seed, epoch=0, cells=work.cells)
        if number:
            read += between - began
            tokenise += time.thread_time() - between
            done += work.cells.size
        if done >= cells:
            break
    return read, tokenise, done


def _whole(stream: Stream, cells: int) -> tuple[float, float, _Seen]:
    """Run the stream as training does; return CPU and wall seconds, and what came."""
    seen = _Seen()
    steps = max(1, -(-min(cells, stream.n_cells) // stream.config.batch_size))
    warm_up = stream.epoch(0)
    next(warm_up)
    warm_up.close()
    cpu, wall = _cpu_seconds(), time.perf_counter()
    for batch in islice(stream.epoch(1), steps):
        seen.add(batch)
    return _cpu_seconds() - cpu, time.perf_counter() - wall, seen


def _cpu_seconds() -> float:
    """Return user and system time of this process and all below it."""
    total = time.process_time()  # what is told of other processes is coarse: few cells would take no time at all
    for process in psutil.Process().children(recursive=True):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def _disk_bytes(selection: Selection) -> float:
    return sum(entry.bytes for entry in selection.shards) / sum(entry.n_rows for entry in selection.shards)


def _mixing(selection: Selection, by: Mapping[str, Sequence[str]], seen: _Seen) -> dict[str, float]:
    sizes = np.array(seen.sizes, np.int64)
    found = {}
    for name, values in by.items():
        every = np.concatenate(selection.codes(name, list(values)))
        population = np.bincount(every[every >= 0], minlength=len(values)).astype(np.int64)
        found[name] = mixing(np.concatenate(seen.codes[name]), sizes, population)
    return found
