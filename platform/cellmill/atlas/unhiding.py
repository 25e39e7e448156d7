"""Cells that were hidden behind an equal one, and are shown again because that one is withdrawn."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from cellmill.atlas.cell_keys import as_items, shard_keys
from cellmill.atlas.entry import ShardEntry
from cellmill.atlas.hash_index import HashIndex
from cellmill.atlas.hash_search import NOBODY
from cellmill.atlas.overlay import Overlay, read_overlay
from cellmill.atlas.part_rows import overlaid
from cellmill.storage import Storage

U64 = npt.NDArray[np.uint64]

NEARLY_EMPTY = 200
"""Cells with fewer genes are different cells if their barcodes differ."""


def show_again(storage: Storage, entries: Sequence[ShardEntry], removed: Iterable[U64]) -> list[ShardEntry]:
    """Show one of the hidden cells for each content that no cell shows any more; of nearly empty ones, each barcode.

    Parameters
    ----------
    storage
        The atlas's storage.
    entries
        Shards of the coming snapshot; their runs of hashes do not have the removed cells.
    removed : uint64 [n, 3]
        Keys of cells that were shown and are removed, in any number of parts.

    Returns
    -------
    list
        The shards that change, with their new overlays.
    """
    index = HashIndex(storage, entries)
    orphans: dict[int, list[U64]] = defaultdict(list)
    for keys in removed:
        # Whether barcodes had to be equal was decided when cells were hidden; both ways are looked at.
        for exact in (True, False):
            wanted = keys if exact else np.column_stack([keys[:, :2], np.zeros(len(keys), np.uint64)])
            wanted = np.unique(wanted, axis=0)
            found = index.find(wanted, np.full(len(wanted), exact))
            alone = np.flatnonzero((found.shown == NOBODY) & (found.n_hidden > 0))
            for shard in np.unique(found.hidden[alone]).tolist():
                orphans[shard].append(wanted[alone[found.hidden[alone] == shard]])
    return [_shown(storage, entries[shard], np.concatenate(keys)) for shard, keys in sorted(orphans.items())]


def _shown(storage: Storage, entry: ShardEntry, wanted: U64) -> ShardEntry:
    keys, table = shard_keys(storage, entry, "n_genes", "source_row")
    overlay = read_overlay(storage, entry)
    # Of several hidden cells of one content the first in the source is shown.
    hidden = overlay.hidden[np.argsort(table.column("source_row").to_numpy()[overlay.hidden], kind="stable")]
    contents = np.ascontiguousarray(keys[hidden])
    contents[:, 2] = 0
    nameless = wanted[:, 2] == 0
    match = np.isin(as_items(keys[hidden]), as_items(wanted[~nameless]))
    match |= np.isin(as_items(contents), as_items(wanted[nameless]))
    found = hidden[match]
    near = table.column("n_genes").to_numpy()[hidden] < NEARLY_EMPTY
    kinds = np.where(near[:, None], keys[hidden], contents)
    _, first = np.unique(as_items(kinds[match]), return_index=True)
    rest = np.setdiff1d(overlay.hidden, found[first]).astype(np.uint32)
    return overlaid(storage, entry, Overlay(rest, overlay.duplicate))
