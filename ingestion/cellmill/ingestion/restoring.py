"""Hidden cells that are shown again, because their twin left the snapshot."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cellmill.atlas import ShardEntry
from cellmill.atlas.cell_keys import as_items, shard_keys
from cellmill.atlas.overlay import Overlay, read_overlay
from cellmill.atlas.part_rows import overlaid
from cellmill.atlas.spill import Spill
from cellmill.storage import Storage

U64 = npt.NDArray[np.uint64]


def restore(storage: Storage, entries: Sequence[ShardEntry], orphans: Spill, min_genes: int) -> list[ShardEntry]:
    """Show hidden cells again, and return the shards that change, with their new overlays.

    Parameters
    ----------
    storage
        The atlas's storage.
    entries
        Shards of the snapshot, by number.
    orphans
        Rows of four: the key of a cell, and twice the number of the shard that hides it, plus one if barcodes count.
    min_genes
        As in the configuration.
    """
    changed = []
    for number in range(orphans.n_parts):
        rows = orphans.part(number)
        shard = (rows[:, 3] >> np.uint64(1)).astype(np.int64)
        for i in np.unique(shard).tolist():
            changed.append(_shown(storage, entries[i], rows[shard == i, :3], min_genes))
    return changed


def _shown(storage: Storage, entry: ShardEntry, wanted: U64, min_genes: int) -> ShardEntry:
    keys, table = shard_keys(storage, entry, "n_genes", "source_row")
    near = table.column("n_genes").to_numpy() < min_genes
    keys[~near, 2] = 0
    overlay = read_overlay(storage, entry)
    # Of several hidden cells of one content the first in the source is shown.
    hidden = overlay.hidden[np.argsort(table.column("source_row").to_numpy()[overlay.hidden], kind="stable")]
    _, first = np.unique(as_items(keys[hidden]), return_index=True)
    candidates = hidden[first]
    back = candidates[np.isin(as_items(keys[candidates]), as_items(wanted))]
    rest = np.setdiff1d(overlay.hidden, back).astype(np.uint32)
    return overlaid(storage, entry, Overlay(rest, overlay.duplicate))
