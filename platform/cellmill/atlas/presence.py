"""What a snapshot has of what an ingestion plans, wherever the cells lie by now."""

from __future__ import annotations

from collections.abc import Iterable

from cellmill.atlas.entry import ShardEntry
from cellmill.atlas.withdrawals import is_current


class Presence:
    """The shards and sources that a snapshot has, with all the cells that they may have.

    Parameters
    ----------
    shards
        Of the snapshot.
    active
        Numbers of the withdrawals that hold.
    """

    def __init__(self, shards: Iterable[ShardEntry], active: set[int]) -> None:
        self._shards: set[tuple[str, str]] = set()
        self._sources: set[tuple[str, str]] = set()
        incomplete: set[tuple[str, str]] = set()
        for entry in shards:
            if not entry.parts:
                if is_current(entry, active):
                    self._shards.add(entry.planned)
                continue
            for part in entry.sources:
                # A source's cells are spread over many shards: it is there if none of them lacks any.
                (self._sources if is_current(part, active) else incomplete).add(part.made)
        self._sources -= incomplete

    def has_source(self, dataset: str, config_digest: str) -> bool:
        """Return whether compacted shards have all that a configuration makes of a source."""
        return (dataset, config_digest) in self._sources

    def has(self, dataset: str, digest: str, config_digest: str) -> bool:
        """Return whether a shard is there, named as an ingestion plans it, or its cells are in compacted ones."""
        return (dataset, digest) in self._shards or self.has_source(dataset, config_digest)
