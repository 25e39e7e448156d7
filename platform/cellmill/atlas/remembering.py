"""What is kept of a snapshot that is forgotten: how many cells of each source the withdrawals take from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from cellmill.atlas.entry import ShardEntry
from cellmill.atlas.forgotten import Forgotten, Held
from cellmill.atlas.overlay import read_overlay
from cellmill.atlas.part_rows import count_parts
from cellmill.atlas.standing import Standing
from cellmill.errors import ConfigError, IntegrityError

if TYPE_CHECKING:
    from cellmill.atlas.atlas import Atlas

_Source = tuple[str, str]
_Counts = dict[_Source, tuple[int, int]]
"""How many cells of each source fulfil the predicate, and how many are known to be the same as such cells."""


class Memory:
    """Counts what withdrawals take from snapshots; a shard that many snapshots have is looked at once.

    Parameters
    ----------
    atlas
        The atlas.
    """

    def __init__(self, atlas: Atlas) -> None:
        self._atlas = atlas
        newest = atlas.snapshot().version
        self._withdrawals: Sequence[Standing] = atlas.withdrawals(newest, lifted=True)
        self._counts: dict[tuple[str, str, str, int], _Counts | None] = {}

    def of(self, version: int, time: str, reason: str) -> Forgotten:
        """Return the record of a snapshot that is about to be forgotten.

        Parameters
        ----------
        version
            The snapshot.
        time, reason
            For the record.
        """
        told: list[int] = []
        held: list[Held] = []
        if self._withdrawals:
            try:
                shards = self._atlas.snapshot(version).shards
            except IntegrityError:
                return Forgotten(version=version, time=time, reason=reason)
            totals: Counter[_Source] = Counter()
            for entry in shards:
                totals.update({part.key: part.n_cells for part in entry.sources})
            for one in self._withdrawals:
                found = [self._count(one, entry) for entry in shards]
                if None not in found:
                    told.append(one.number)
                    held += _held(one.number, (counts for counts in found if counts), totals)
        return Forgotten(version=version, time=time, reason=reason, told=tuple(told), held=tuple(held))

    def lacks(self, record: Forgotten) -> bool:
        """Return whether a snapshot could not be asked for some withdrawal."""
        return len(record.told) < len(self._withdrawals)

    def _count(self, one: Standing, entry: ShardEntry) -> _Counts | None:
        """Return the visible cells of a shard that a withdrawal takes; None where the shard cannot tell."""
        key = (*entry.key, entry.overlay, one.number)
        if key not in self._counts:
            try:
                self._counts[key] = self._look(one, entry)
            except (IntegrityError, ConfigError):
                self._counts[key] = None
        return self._counts[key]

    def _look(self, one: Standing, entry: ShardEntry) -> _Counts:
        storage = self._atlas.storage
        gone = one.rows(storage, entry)
        if not gone.either.any():
            return {}
        shown = read_overlay(storage, entry).mask(entry.n_rows)
        told, known = (
            {part.key: n for part, n in count_parts(storage, entry, rows & shown)} for rows in (gone.told, gone.known)
        )
        return {key: (told.get(key, 0), known.get(key, 0)) for key in {*told, *known}}


def _held(number: int, counts: Iterable[_Counts], totals: Counter[_Source]) -> list[Held]:
    told: Counter[_Source] = Counter()
    known: Counter[_Source] = Counter()
    for some in counts:
        for key, (by_predicate, by_identity) in some.items():
            told[key] += by_predicate
            known[key] += by_identity
    return [
        Held(withdrawal=number, dataset=key[0], source_digest=key[1], told=told[key], known=known[key], of=totals[key])
        for key in sorted(told)
    ]
