"""The atlas: a versioned, checked and queryable collection of cells."""

from cellmill.atlas.atlas import Atlas
from cellmill.atlas.catalog import Commit
from cellmill.atlas.entry import ShardEntry
from cellmill.atlas.read import read, read_snapshot
from cellmill.atlas.selection import Selection
from cellmill.atlas.shard import Shard, open_shard
from cellmill.atlas.snapshot import Snapshot

__all__ = [
    "Atlas",
    "Commit",
    "Selection",
    "Shard",
    "ShardEntry",
    "Snapshot",
    "open_shard",
    "read",
    "read_snapshot",
]
