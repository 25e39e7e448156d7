"""The part of a selection whose shards can be read, for what needs all cells at once and is told to go on."""

from __future__ import annotations

from cellmill.atlas.entry import ShardEntry
from cellmill.atlas.selection import Selection
from cellmill.atlas.shard import open_shard
from cellmill.errors import IntegrityError
from cellmill.storage import Storage

_ROWS_AT_ONCE = 8192


def sound_part(selection: Selection, skipped: dict[str, int]) -> Selection:
    """Return the selected cells of shards that are neither missing nor damaged; each shard is read as a whole.

    Parameters
    ----------
    selection
        The cells.
    skipped
        Other shards (``dataset/digest``) are noted here, with the number of their selected cells.

    Raises
    ------
    IntegrityError
        No shard can be read.
    """
    sound: list[int] = []
    for i, entry in enumerate(selection.shards):
        try:
            _read(selection.snapshot.atlas.storage, entry)
            sound.append(i)
        except IntegrityError:
            if i == len(selection.shards) - 1 and not sound:
                raise
            skipped["/".join(entry.key)] = int(selection.counts[i])
    return selection.of_shards(sound)


def _read(storage: Storage, entry: ShardEntry) -> None:
    shard = open_shard(storage, entry)
    for start in range(0, entry.n_rows, _ROWS_AT_ONCE):
        shard.gather([start], [min(start + _ROWS_AT_ONCE, entry.n_rows)])
