"""Whose cells duplicates are: the data set of a cell that an index of content hashes names by its shard alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cellmill.atlas import ShardEntry
from cellmill.atlas.cell_keys import as_items, shard_keys
from cellmill.atlas.part_rows import part_of_rows
from cellmill.storage import Storage

U64 = npt.NDArray[np.uint64]


class Owners:
    """The data sets of cells in shards.

    Parameters
    ----------
    storage
        The atlas's storage.
    entries
        Shards, by number.
    """

    def __init__(self, storage: Storage, entries: Sequence[ShardEntry]) -> None:
        self._storage, self._entries = storage, entries
        self._last: tuple[int, U64, npt.NDArray[np.int64]] | None = None

    def count(self, shard: int, keys: U64, by_barcode: npt.NDArray[np.bool_]) -> Counter[str]:
        """Return how many cells equal one of each data set in a shard; of several the first in the shard counts.

        Parameters
        ----------
        shard
            Number of the shard, which has an equal of each cell.
        keys : uint64 [n, 3]
            As `shard_keys` gives them, without the barcode where this does not count.
        by_barcode : bool [n]
            Whether it does.
        """
        entry = self._entries[shard]
        if len(entry.datasets) == 1:
            return Counter({entry.datasets[0]: len(keys)})
        there, part = self._read(shard)
        found: Counter[str] = Counter()
        for named in (False, True):
            wanted = as_items(keys[by_barcode == named])
            if not wanted.size:
                continue
            items = there if named else np.column_stack([there[:, :2], np.zeros(len(there), np.uint64)])
            every, first = np.unique(as_items(items), return_index=True)
            at = np.minimum(np.searchsorted(every, wanted), every.size - 1)
            for number, n in zip(*np.unique(part[first[at]], return_counts=True), strict=True):
                found[entry.sources[number].dataset] += int(n)
        return found

    def _read(self, shard: int) -> tuple[U64, npt.NDArray[np.int64]]:
        if self._last is None or self._last[0] != shard:
            entry = self._entries[shard]
            self._last = shard, shard_keys(self._storage, entry)[0], part_of_rows(self._storage, entry)
        return self._last[1:]
