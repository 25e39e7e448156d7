"""What a snapshot keeps when sources are replaced or vanish: other shards, and of compacted ones the other rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cellmill.atlas import ShardEntry
from cellmill.atlas.hash_index import HashIndex
from cellmill.atlas.overlay import read_overlay
from cellmill.atlas.part import Part
from cellmill.atlas.part_rows import part_of_rows
from cellmill.atlas.rewriting import without_rows
from cellmill.genes import Vocabulary
from cellmill.storage import Storage

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Leaving:
    """Rows that a snapshot loses.

    Attributes
    ----------
    entry
        The shard that has them.
    rows : bool [n_rows]
        Those that the snapshot showed.
    """

    entry: ShardEntry
    rows: Mask

    @property
    def n_cells(self) -> int:
        """Cells that the snapshot loses."""
        return int(self.rows.sum())


@dataclass(frozen=True)
class Remainder:
    """What a snapshot keeps, and what it loses.

    Attributes
    ----------
    stay
        Shards that it keeps, and those that were written again without rows that it loses.
    leaving
        What it loses.
    n_parts
        Shards, and parts of compacted shards, that it loses.
    """

    stay: list[ShardEntry]
    leaving: list[Leaving]
    n_parts: int


def take_apart(
    storage: Storage,
    vocabulary: Callable[[], Vocabulary],
    entries: Sequence[ShardEntry],
    is_gone: Callable[[ShardEntry, Part], bool],
) -> Remainder:
    """Take sources out of a snapshot's shards; compacted shards that have others, too, are written again.

    Parameters
    ----------
    storage
        The atlas's storage.
    vocabulary
        Returns the atlas's, where it is needed.
    entries
        The shards.
    is_gone
        Says of a shard and a source that it has whether its cells go.
    """
    stay: list[ShardEntry] = []
    leaving: list[Leaving] = []
    again: list[ShardEntry] = []
    n_parts = 0
    for entry in entries:
        flags = np.array([is_gone(entry, part) for part in entry.sources])
        if not flags.any():
            stay.append(entry)
            continue
        n_parts += int(flags.sum())
        rows = flags[part_of_rows(storage, entry)]
        leaving.append(Leaving(entry, rows & read_overlay(storage, entry).mask(entry.n_rows)))
        if not flags.all():
            again.append(without_rows(storage, vocabulary(), entry, rows, ()).model_copy(update={"hash_run": ""}))
    if indexed := {leaver.entry.planned for leaver in leaving if leaver.entry.hash_run}:
        rows_by_key = HashIndex(storage, stay).add([entry for entry in again if entry.planned in indexed])
        there = {entry.key: entry for entry in [*stay, *again]} | rows_by_key
        return Remainder(list(there.values()), leaving, n_parts)
    return Remainder([*stay, *again], leaving, n_parts)


def changed_rows(
    before: Sequence[ShardEntry], after: Sequence[ShardEntry]
) -> tuple[list[ShardEntry], list[tuple[str, str]]]:
    """Return the rows that a commit adds to the catalog, and the keys of those that it removes."""
    there = {entry.key: entry for entry in before}
    then = {entry.key: entry for entry in after}
    add = [entry for key, entry in sorted(then.items()) if there.get(key) != entry]
    return add, sorted(there.keys() - then.keys())
