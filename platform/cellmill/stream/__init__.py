"""The stream: shuffled, tokenised batches of an atlas, with a position exact to the cell."""

from cellmill.stream.balance import micro_batch_count, split_cells, straggler_ratio, unused, waste
from cellmill.stream.config import StreamConfig
from cellmill.stream.plan import EpochPlan
from cellmill.stream.position import Position
from cellmill.stream.shard_columns import as_text, class_counts
from cellmill.stream.stream import Stream

__all__ = [
    "EpochPlan",
    "Position",
    "Stream",
    "StreamConfig",
    "as_text",
    "class_counts",
    "micro_batch_count",
    "split_cells",
    "straggler_ratio",
    "unused",
    "waste",
]
