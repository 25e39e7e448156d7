"""The atlas: versioned shards of cells, their metadata, and where they came from."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cellmill.atlas.atlas import Atlas
    from cellmill.atlas.catalog import Change
    from cellmill.atlas.content import content_hash
    from cellmill.atlas.entry import ShardEntry
    from cellmill.atlas.reading import read, read_snapshot
    from cellmill.atlas.selection import Selection
    from cellmill.atlas.shard import Shard, open_shard
    from cellmill.atlas.snapshot import Snapshot

_HOME = {
    "Atlas": "atlas",
    "Change": "catalog",
    "Selection": "selection",
    "Shard": "shard",
    "ShardEntry": "entry",
    "Snapshot": "snapshot",
    "content_hash": "content",
    "open_shard": "shard",
    "read": "reading",
    "read_snapshot": "reading",
}

__all__ = [
    "Atlas",
    "Change",
    "Selection",
    "Shard",
    "ShardEntry",
    "Snapshot",
    "content_hash",
    "open_shard",
    "read",
    "read_snapshot",
]


def __getattr__(name: str) -> Any:
    """Import a name when it is first used."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
