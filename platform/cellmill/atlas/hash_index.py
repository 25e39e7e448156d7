"""The index of content hashes of a snapshot: the runs that its catalog rows name.

A run counts for the shards whose rows name it. So the index is a function of the snapshot: it travels in time with it,
and a shard that goes takes its hashes with it, in whichever run they are. Runs are immutable; where a snapshot names
several of like size, they are merged into one (a tier), which the rows of all their shards name from then on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from cellmill.atlas.entry import ShardEntry
from cellmill.atlas.hash_run import HashRun, Member
from cellmill.atlas.hash_run_writing import write_run
from cellmill.atlas.hash_search import Matches, search
from cellmill.errors import IntegrityError
from cellmill.storage import Storage

U64 = npt.NDArray[np.uint64]

FAN = 4
"""So many runs of like size become one: fewer runs to search, and each hash is written anew at every power of this."""
_SMALL = 1 << 16


class HashIndex:
    """The index of some shards.

    Attributes
    ----------
    entries
        The shards, by number.
    runs
        Runs that are open, by name.

    Parameters
    ----------
    storage
        The atlas's storage.
    entries
        Rows of the catalog; those that name no run are not in the index.

    Raises
    ------
    IntegrityError
        A run is missing or damaged, or does not have a shard whose row names it.
    """

    def __init__(self, storage: Storage, entries: Sequence[ShardEntry]) -> None:
        self._storage = storage
        self.entries = tuple(entries)
        self.runs: dict[str, HashRun] = {}
        self._shard_of: dict[str, npt.NDArray[np.int64]] = {}
        by_run: dict[str, dict[Member, int]] = defaultdict(dict)
        for i, entry in enumerate(entries):
            if entry.hash_run:
                by_run[entry.hash_run][Member.of(entry)] = i
        for name, shards in by_run.items():
            run = HashRun(storage, f"hashes/{name}")
            if missing := shards.keys() - set(run.members):
                raise IntegrityError(
                    f"A run of content hashes does not have the shard {min(missing).digest}, whose row names it.",
                    where=storage.join(f"hashes/{name}"),
                    fix="Restore the catalog and the file from a copy of the atlas.",
                )
            self.runs[name] = run
            self._shard_of[name] = np.array([shards.get(member, -1) for member in run.members], np.int64)

    @property
    def bytes_read(self) -> int:
        """Bytes of runs that were read so far."""
        return sum(run.bytes_read for run in self.runs.values())

    def find(self, keys: U64, by_barcode: npt.NDArray[np.bool_]) -> Matches:
        """Return what equals some cells.

        Parameters
        ----------
        keys : uint64 [n, 3]
            As `shard_keys` gives them, in ascending order.
        by_barcode : bool [n]
            Whether barcodes have to be equal, too.
        """
        matches = Matches.none(len(keys))
        for name, run in self.runs.items():
            search(run, self._shard_of[name], keys, by_barcode, matches)
        return matches

    def add(self, new: Sequence[ShardEntry]) -> dict[tuple[str, str], ShardEntry]:
        """Write the hashes of new shards, merged with runs that have grown too many.

        Parameters
        ----------
        new
            Shards, with the overlays that the snapshot will have. One that is in the index already, under another
            overlay, takes the place of its former self.

        Returns
        -------
        dict
            Rows that change, by key: the new ones, and those of shards whose run was merged.
        """
        if not new:
            return {}
        new_keys = {entry.key for entry in new}
        members: dict[str, list[ShardEntry]] = defaultdict(list)
        for entry in self.entries:
            if entry.hash_run and entry.key not in new_keys:
                members[entry.hash_run].append(entry)
        sizes = {name: sum(entry.n_rows for entry in shards) for name, shards in members.items()}
        merged = merged_runs(sum(entry.n_rows for entry in new), sizes)
        entries = [*new, *(entry for name in merged for entry in members[name])]
        run = write_run(self._storage, entries, [self.runs[name] for name in merged])
        return {entry.key: entry.model_copy(update={"hash_run": run}) for entry in entries}


def merged_runs(n: int, sizes: Mapping[str, int]) -> list[str]:
    """Return the runs that a new one of n records takes in: those of its size once they are `FAN`, and so on."""
    taken: list[str] = []
    while True:
        like = sorted(name for name, size in sizes.items() if name not in taken and _level(size) <= _level(n))
        if len(like) < FAN - 1:
            return taken
        taken += like
        n += sum(sizes[name] for name in like)


def _level(n: int) -> int:
    """Return the size class of a run: each is `FAN` times the one before."""
    level, most = 0, _SMALL
    while n > most:
        level, most = level + 1, most * FAN
    return level
