"""Cells that were marked as duplicates, and are so no more because the cell that they equal is gone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from cellmill.atlas.cell_keys import as_items, shard_keys
from cellmill.atlas.entry import ShardEntry
from cellmill.atlas.overlay import Overlay, read_overlay
from cellmill.atlas.part_rows import overlaid
from cellmill.storage import Storage

U64 = npt.NDArray[np.uint64]


def firsts(storage: Storage, entry: ShardEntry, rows: npt.NDArray[np.bool_], min_genes: int) -> U64:
    """Return the keys of those of a shard's rows that bear no mark: uint64 [n, 3], zero where barcodes do not count.

    Parameters
    ----------
    storage, entry
        The shard.
    rows : bool [n_rows]
        Which rows.
    min_genes
        Cells with fewer genes are different cells if their barcodes differ.
    """
    some = rows.copy()
    some[read_overlay(storage, entry).duplicate] = False
    return _keys(storage, entry, min_genes)[0][some]


def unmark(storage: Storage, entries: Iterable[ShardEntry], gone: Sequence[U64], min_genes: int) -> list[ShardEntry]:
    """Clear the mark of one cell for each content whose cell without a mark is gone.

    Parameters
    ----------
    storage
        The atlas's storage.
    entries
        Shards that the snapshot keeps.
    gone : uint64 [n, 3]
        As `firsts` gives them, in any number of parts.
    min_genes
        As for `firsts`.

    Returns
    -------
    list
        The shards that change, with their new overlays.
    """
    changed = []
    marked = [entry for entry in entries if entry.overlay and read_overlay(storage, entry).duplicate.size]
    wanted = np.unique(as_items(np.concatenate([np.empty((0, 3), np.uint64), *gone]))) if marked else None
    for entry in sorted(marked, key=lambda entry: entry.key):
        if wanted is None or not wanted.size:
            break
        keys, source_row = _keys(storage, entry, min_genes)
        overlay = read_overlay(storage, entry)
        rows = overlay.duplicate[np.argsort(source_row[overlay.duplicate], kind="stable")]
        found, first = np.unique(as_items(keys[rows]), return_index=True)
        is_first = np.isin(found, wanted)
        if is_first.any():
            wanted = np.setdiff1d(wanted, found[is_first])
            rest = np.setdiff1d(overlay.duplicate, rows[first[is_first]]).astype(np.uint32)
            changed.append(overlaid(storage, entry, Overlay(overlay.hidden, rest)))
    return changed


def _keys(storage: Storage, entry: ShardEntry, min_genes: int) -> tuple[U64, npt.NDArray[np.int64]]:
    keys, table = shard_keys(storage, entry, "n_genes", "source_row")
    keys[table.column("n_genes").to_numpy() >= min_genes, 2] = 0
    return keys, table.column("source_row").to_numpy()
