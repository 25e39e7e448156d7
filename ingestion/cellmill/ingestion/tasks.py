"""The two kinds of task: a chunk of a source to staged blocks, and staged blocks to a shard."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cellmill.atlas import ShardEntry
from cellmill.errors import IntegrityError
from cellmill.genes import Vocabulary
from cellmill.ingestion import shards, staging
from cellmill.ingestion.backend import Row
from cellmill.ingestion.chunk import ChunkResult, process_chunk
from cellmill.ingestion.config import QualityConfig
from cellmill.ingestion.merging import Merged
from cellmill.ingestion.opening import check_unchanged, open_source
from cellmill.ingestion.plan import SourcePlan
from cellmill.ingestion.sources import Source
from cellmill.storage import Storage


@dataclass(frozen=True)
class ReadChunk:
    """Task number i reads the i-th chunk of all sources' chunks, and stages its cells by shard.

    Parameters
    ----------
    storage
        The atlas's storage.
    plans
        The sources.
    memory
        The one source, if it is in the memory of this process; files are opened where the task runs.
    quality
        Which cells are kept.
    """

    storage: Storage
    plans: Sequence[SourcePlan]
    memory: Source | None
    quality: QualityConfig

    @property
    def n(self) -> int:
        """Number of tasks."""
        return sum(len(plan.chunks) for plan in self.plans)

    def __call__(self, number: int) -> Row:
        """Run one task, unless an earlier run did."""
        which, chunk = _locate([len(plan.chunks) for plan in self.plans], number)
        plan = self.plans[which]
        row = staging.receipt(self.storage, plan, chunk)
        if row is None:
            row = self._read(plan, chunk)
        return {**row, "source": which}

    def _read(self, plan: SourcePlan, chunk: int) -> Row:
        source = open_source(plan) if self.memory is None else self.memory
        start, stop = plan.chunks[chunk]
        result = process_chunk(plan, source, start, stop, self.quality)
        if self.memory is None:
            check_unchanged(plan)
        sizes = np.zeros(plan.n_shards, np.int64)
        for shard, block in result.blocks.items():
            sizes[shard] = block.rank.size
        row = receipt_of(result, stop - start, sizes)
        staging.stage(self.storage, plan, chunk, result.blocks.items(), row)
        return row


def receipt_of(result: ChunkResult, n_read: int, shard_cells: npt.NDArray[np.int64]) -> Row:
    """Return what a chunk reports: cells that were read, kept for each shard, and left out by reason."""
    dropped = json.dumps(result.dropped)
    return {"cells_in": n_read, "shard_cells": shard_cells, "dropped": dropped, "umis": result.umis}


@dataclass(frozen=True)
class MakeShard:
    """Task number i writes the i-th shard of all sources' shards, unless an earlier run has.

    Parameters
    ----------
    storage, plans
        As in `ReadChunk`.
    vocabulary
        Holds all features.
    shard_cells
        How many cells each shard of each source must have.
    """

    storage: Storage
    plans: Sequence[SourcePlan]
    vocabulary: Vocabulary
    shard_cells: Sequence[npt.NDArray[np.int64]]

    @property
    def n(self) -> int:
        """Number of tasks."""
        return sum(plan.n_shards for plan in self.plans)

    def __call__(self, number: int) -> Row:
        """Run one task."""
        which, shard = _locate([plan.n_shards for plan in self.plans], number)
        plan, expected = self.plans[which], int(self.shard_cells[which][shard])
        if not expected:
            return {"entry": "", "cells": 0, "source": which}
        entry = shards.existing(self.storage, plan, shard)
        if entry is None:
            try:
                entry = self._write(plan, shard, expected)
            except IntegrityError:
                # Another run of the same sources may have made the shard meanwhile, and cleared what was staged.
                entry = shards.existing(self.storage, plan, shard)
                if entry is None:
                    raise
        _check(plan, expected, entry.n_rows)
        return {"entry": entry.model_dump_json(), "cells": entry.n_cells, "source": which}

    def _write(self, plan: SourcePlan, shard: int, expected: int) -> ShardEntry:
        blocks = staging.staged(self.storage, plan, shard)
        _check(plan, expected, sum(block.rank.size for block in blocks))
        return shards.write(self.storage, plan, shard, Merged(blocks, len(plan.mapping.features)), self.vocabulary)


def _check(plan: SourcePlan, expected: int, found: int) -> None:
    if found != expected:
        raise IntegrityError(
            f"A shard should have {expected:,} cells, but {found:,} are there.",
            where=plan.url,
            fix="Run again: what is missing will be read once more.",
        )


def _locate(sizes: list[int], number: int) -> tuple[int, int]:
    """Return the group and the position in it of the number-th of all items."""
    ends = np.cumsum(sizes)
    which = int(np.searchsorted(ends, number, side="right"))
    return which, number - int(ends[which] - sizes[which])
