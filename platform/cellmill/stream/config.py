"""How cells are streamed."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cellmill.config import Config
from cellmill.stream.sampling import Sampling


class StreamConfig(Config):
    """How cells are streamed.

    What decides the order is `batch_size`, `seed`, `lanes`, `window`, `run` and `sampling`; the rest may change at any
    time without changing a single batch.

    Attributes
    ----------
    batch_size
        Cells of a global step, over all workers.
    seed
        Of the order, and of all chance in tokens.
    lanes
        Virtual ranks that the cells of an epoch are dealt to. By default the largest divisor of the batch that is at
        most 64; more where the workers are more.
    window
        Cells of a lane that are shuffled together, about.
    run
        Neighbouring cells of a shard that are read together, at least; fewer in atlases below 131,072 cells.
    sampling
        Which cells an epoch draws: every cell once by default; ``kind: balanced``, ``weighted`` or ``sets``, see
        `cellmill.stream.sampling`.
    group_cells
        Cells that one data task makes, at most, about.
    group_mb
        Memory of their counts, at most, about, in MB: where cells have many genes, a task makes fewer.
    backend
        ``local``: threads of the training process; ``ray``: Ray Data tasks anywhere in the cluster.
    data_cpus
        CPUs for making batches: threads of each worker (``local``), or of all data tasks together (``ray``).
    prefetch
        Groups that are made ahead of the one in use, at most, for each worker (``local``).
    object_store_mb
        Bound on the object store that the finished groups of all workers may fill (``ray``), in MB.
    task_retries
        How often a data task whose process died is tried again (``ray``).
    cache_gb
        Bound on the folder ``$CELLMILL_CACHE/stream`` (``~/.cache/cellmill/stream``) of each machine, in GB: what was
        read of shards in an object store stays there, so that a second epoch that finds all of it asks the store for
        nothing. 0 keeps nothing. Shards on a local disk are never copied.
    on_corrupt
        What a damaged or missing shard does: ``stop`` ends the stream with an error that names it; ``skip`` leaves
        those cells out of their batches whose own counts cannot be read (all cells of a shard that cannot be opened,
        and sets as wholes), counts them by shard (`Stream.skipped`) and says so in the log. Steps stay as planned, so
        that batches are smaller. Damaged metadata of cells, and a store that does not answer, end the stream in any
        case.
    """

    batch_size: int = Field(default=256, ge=1)
    seed: int = Field(default=0, ge=0, lt=1 << 62)
    lanes: int | None = Field(default=None, ge=1)
    window: int = Field(default=1024, ge=1)
    run: int = Field(default=512, ge=1)
    sampling: Sampling | None = None
    group_cells: int = Field(default=16_384, ge=1)
    group_mb: int = Field(default=80, ge=1)
    backend: Literal["local", "ray"] = "local"
    data_cpus: float = Field(default=1.0, gt=0)
    prefetch: int = Field(default=2, ge=1)
    object_store_mb: int = Field(default=1024, ge=1)
    task_retries: int = Field(default=2, ge=0)
    cache_gb: float = Field(default=10.0, ge=0)
    on_corrupt: Literal["stop", "skip"] = "stop"
