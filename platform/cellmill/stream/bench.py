"""What the stream achieves on this machine and these cells: rates, where the time goes, how well batches are mixed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, islice

import numpy as np
import numpy.typing as npt

from cellmill.atlas import Selection
from cellmill.atlas.link import read_link
from cellmill.config import Config
from cellmill.errors import ConfigError
from cellmill.memory import Memory
from cellmill.stream.config import StreamConfig
from cellmill.stream.demand import GpuConfig
from cellmill.stream.layout import group_layout
from cellmill.stream.mixing import mixing
from cellmill.stream.plan import default_lanes
from cellmill.stream.reader import read_block
from cellmill.stream.shard_columns import class_counts
from cellmill.stream.sharing import Sharing, shared
from cellmill.stream.stream import Stream
from cellmill.tokens import PackedBatch, Tokeniser

WORKERS = (1, 8, 64)
_GROUPS = 4
STAGES = ("read and decode", "tokenise and pack", "deal into batches", "plan and hand over")


class StreamBench(Config):
    """What was measured.

    Attributes
    ----------
    cells, steps
        How much was streamed.
    cells_per_second, tokens_per_second
        By the clock.
    cells_per_core_second
        By the CPU time of all threads, measured while the whole stream runs.
    tokens_per_cell, perceptual_per_cell
        Means.
    disk_bytes_per_cell, batch_bytes_per_cell
        Of the shards' files, those of linked stores included, and of packed batches.
    stages
        Share of the CPU time by stage.
    mixing
        Entropy of each label within a global batch, as a share of that of random batches.
    sharing
        How evenly 1, 8 and 64 workers would share the tokens of the steps, as far as the batch can be dealt to so many.
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
    sharing: tuple[Sharing, ...]
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
    lengths: list[npt.NDArray[np.int64]] = field(default_factory=list)
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
    token_capacity: int = 65_536,
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
        How many cells to time, at least, after some that warm up caches and compilers: whole epochs of a small atlas,
        some groups of a large one.
    gpu
        What they are to feed.
    token_capacity
        Tokens that one forward pass may hold.

    Raises
    ------
    ConfigError
        No cell is selected, a column does not exist, or a cell exceeds the token capacity.
    """
    stream = Stream(selection, tokeniser, config, labels={name: (name, list(by[name])) for name in by})
    stream.check_capacity(token_capacity)
    read, tokenise, staged = _stages(stream, tokeniser, cells)
    spent, wall, seen = _whole(stream, cells)
    costs = [read / staged, tokenise / staged, spent.dealing / seen.cells]
    # Stages are measured apart, so that their sum may by chance exceed the whole.
    per_cell = max(spent.whole / seen.cells, sum(costs))
    costs.append(per_cell - sum(costs))
    demand = gpu.cells_per_second(seen.tokens / seen.cells, seen.perceptual / seen.cells)
    return StreamBench(
        cells=seen.cells,
        steps=len(seen.sizes),
        cells_per_second=seen.cells / wall,
        tokens_per_second=seen.tokens / wall,
        cells_per_core_second=1 / per_cell,
        tokens_per_cell=seen.tokens / seen.cells,
        perceptual_per_cell=seen.perceptual / seen.cells,
        disk_bytes_per_cell=_disk_bytes(selection),
        batch_bytes_per_cell=seen.bytes / seen.cells,
        stages={name: cost / per_cell for name, cost in zip(STAGES, costs, strict=True)},
        mixing=_mixing(selection, by, seen),
        sharing=tuple(_sharing(stream, selection, tokeniser, seen, cells, token_capacity)),
        gpu_cells_per_second=demand,
        cores_per_gpu=demand * per_cell,
    )


def _stages(stream: Stream, tokeniser: Tokeniser, cells: int) -> tuple[float, float, int]:
    """Make groups one after the other in this thread; return CPU seconds of reading and of tokenising, and cells."""
    memory = Memory()
    read = tokenise = 0.0
    done = 0
    # The first group warms up caches and compilers. A small atlas is read again and again.
    groups = ((plan, group) for plan in map(stream.plan, count()) for group in stream.groups(plan, 0, 1))
    for number, (plan, group) in enumerate(groups):
        work = stream.work(plan, group_layout(plan, group))
        began = time.thread_time()
        block = read_block(work.reading, work.cells, memory=memory)
        between = time.thread_time()
        tokeniser.tokenise(block, seed=plan.seed, epoch=plan.epoch, copies=work.copies, memory=memory)
        if number:
            read += between - began
            tokenise += time.thread_time() - between
            done += work.cells.size
        if done >= cells:
            break
    return read, tokenise, done


@dataclass(frozen=True)
class _Spent:
    """CPU seconds: of the thread that takes batches, and of all threads."""

    dealing: float
    whole: float


def _whole(stream: Stream, cells: int) -> tuple[_Spent, float, _Seen]:
    """Run the stream as training does; return CPU seconds, seconds by the clock, and what came.

    Groups are made ahead, so the clock must see as many made as come. Of a small atlas it measures whole epochs after
    the first, which begin and end with nothing made; of a large one at least some groups, after as many cells have come
    as lie in the windows at the beginning.
    """
    least = max(cells, _GROUPS * stream.group_cells)
    small = stream.n_cells <= least
    ahead = stream.n_cells if small else stream.lanes * stream.config.window
    seen, before = _Seen(), 0
    began = ended = _clocks()
    for epoch in count():
        for batch in stream.epoch(epoch):
            seen.lengths.append(batch.lengths)
            if before < ahead:
                before += batch.n_cells
                began = _clocks()
                continue
            seen.add(batch)
            ended = _clocks()
            if seen.cells >= least and not small:
                break
        if seen.cells >= (cells if small else least):
            break
    dealing, whole, wall = (end - begin for begin, end in zip(began, ended, strict=True))
    return _Spent(dealing, whole), wall, seen


def _clocks() -> tuple[float, float, float]:
    return time.thread_time(), time.process_time(), time.perf_counter()


def _sharing(
    stream: Stream, selection: Selection, tokeniser: Tokeniser, seen: _Seen, cells: int, capacity: int
) -> Iterator[Sharing]:
    """Yield how evenly workers would share the steps; more workers than lanes need another order of the cells."""
    for workers in WORKERS:
        dealt, lengths = stream, seen.lengths
        if workers > stream.lanes:
            try:
                lanes = default_lanes(stream.config.batch_size // stream.unit, workers)
            except ConfigError:
                continue
            dealt = Stream(selection, tokeniser, stream.config.model_copy(update={"lanes": lanes}))
            enough = -(-min(cells, stream.n_cells) // stream.config.batch_size)
            lengths = [batch.lengths for batch in islice(dealt.epoch(0), enough)]
        yield shared(dealt, workers, lengths, capacity=capacity)


def _disk_bytes(selection: Selection) -> float:
    """Return the bytes of a row; files of a linked store that several shards have rows in count once."""
    storage = selection.snapshot.atlas.storage
    linked: dict[tuple[str, str], int] = {}
    for entry in selection.shards:
        if entry.layout == "anndata":
            link = read_link(storage, entry)
            linked |= {(link.location, key): size for key, size in link.files.items()}
    whole = sum(entry.bytes for entry in selection.shards) + sum(linked.values())
    return whole / sum(entry.n_rows for entry in selection.shards)


def _mixing(selection: Selection, by: Mapping[str, Sequence[str]], seen: _Seen) -> dict[str, float]:
    sizes = np.array(seen.sizes, np.int64)
    found = {}
    for name, values in by.items():
        counts = class_counts(selection, name)
        population = np.array([counts.get(value, 0) for value in values], np.int64)
        found[name] = mixing(np.concatenate(seen.codes[name]), sizes, population)
    return found
