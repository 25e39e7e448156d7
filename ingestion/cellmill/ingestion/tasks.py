"""The two kinds of task: a chunk of a source to staged blocks, and staged blocks to a shard."""

from __future__ import annotations

import json

from cellmill.genes import Vocabulary
from cellmill.ingestion import shards, staging
from cellmill.ingestion.backend import Row
from cellmill.ingestion.chunk import join, open_source, process_chunk
from cellmill.ingestion.config import QualityConfig
from cellmill.ingestion.plan import SourcePlan
from cellmill.ingestion.sources import Source
from cellmill.storage import Storage


def read_chunk(
    number: int, *, storage: Storage, plan: SourcePlan, source: Source | None, quality: QualityConfig
) -> Row:
    """Read one chunk and stage its cells by shard."""
    if source is None:
        assert plan.path is not None
        source = open_source(plan.path, plan.dataset)
    start, stop = plan.chunks[number]
    result = process_chunk(plan, source, start, stop, quality)
    staging.stage(storage, plan, number, result.blocks)
    return {
        "cells_in": stop - start,
        "cells_out": sum(block.matrix.shape[0] for block in result.blocks.values()),
        "dropped": json.dumps(result.dropped),
        "umis": result.umis,
    }


def make_shard(number: int, *, storage: Storage, plan: SourcePlan, vocabulary: Vocabulary) -> Row:
    """Write one shard from what was staged for it, unless an earlier run has."""
    entry = shards.existing(storage, plan, number)
    if entry is None:
        blocks = staging.staged(storage, plan, number)
        if not blocks:
            return {"entry": "", "cells": 0}
        entry = shards.write(storage, plan, number, join(blocks), vocabulary)
    return {"entry": entry.model_dump_json(), "cells": entry.n_cells}
