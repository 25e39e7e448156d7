"""What changed between two snapshots of an atlas."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from cellmill.atlas.cells import CellsFile
from cellmill.atlas.entry import ShardEntry
from cellmill.atlas.overlay import read_overlay
from cellmill.atlas.shard import read_tokens
from cellmill.atlas.snapshot import Snapshot
from cellmill.config import Config
from cellmill.storage import Storage


class DatasetChange(Config):
    """What became of a data set.

    Attributes
    ----------
    kind
        Whether it came, went or changed.
    cells_before, cells_after
        Cells in the two snapshots.
    cells_added, cells_removed
        Cells that are in one of them alone, by their ids.
    shards_added, shards_removed, shards_changed
        Shards that are in one alone, and shards of which other cells are hidden.
    features_added, features_removed
        Features that it has in one alone.
    sources_before, sources_after
        sha256 of its source files.
    licence_before, licence_after
        Its terms.
    """

    kind: Literal["added", "removed", "changed"]
    cells_before: int
    cells_after: int
    cells_added: int
    cells_removed: int
    shards_added: int
    shards_removed: int
    shards_changed: int
    features_added: int
    features_removed: int
    sources_before: tuple[str, ...]
    sources_after: tuple[str, ...]
    licence_before: str
    licence_after: str


class Comparison(Config):
    """What changed; data sets that did not are not named.

    Attributes
    ----------
    before, after
        The snapshots.
    cells_before, cells_after
        Their cells.
    datasets
        What changed, by name.
    """

    before: int
    after: int
    cells_before: int
    cells_after: int
    datasets: dict[str, DatasetChange]


def compare(before: Snapshot, after: Snapshot) -> Comparison:
    """Compare two snapshots of one atlas; only shards that are in one alone, or have other cells, are looked into."""
    names = sorted({entry.dataset for snapshot in (before, after) for entry in snapshot.shards})
    found = {}
    for name in names:
        old = {entry.digest: entry for entry in before.shards if entry.dataset == name}
        new = {entry.digest: entry for entry in after.shards if entry.dataset == name}
        change = _change(before.atlas.storage, old, new)
        if change is not None:
            found[name] = change
    return Comparison(
        before=before.version,
        after=after.version,
        cells_before=before.n_cells,
        cells_after=after.n_cells,
        datasets=found,
    )


def _change(storage: Storage, old: dict[str, ShardEntry], new: dict[str, ShardEntry]) -> DatasetChange | None:
    both = old.keys() & new.keys()
    changed = {digest for digest in both if old[digest].overlay != new[digest].overlay}
    gone = [old[digest] for digest in sorted(old.keys() - new.keys() | changed)]
    came = [new[digest] for digest in sorted(new.keys() - old.keys() | changed)]
    if not gone and not came:
        return None
    left, right = _cell_ids(storage, gone), _cell_ids(storage, came)
    features_left, features_right = _tokens(storage, old.values()), _tokens(storage, new.values())
    return DatasetChange(
        kind="added" if not old else "removed" if not new else "changed",
        cells_before=sum(entry.n_cells for entry in old.values()),
        cells_after=sum(entry.n_cells for entry in new.values()),
        cells_added=int(np.setdiff1d(right, left).size),
        cells_removed=int(np.setdiff1d(left, right).size),
        shards_added=len(new.keys() - old.keys()),
        shards_removed=len(old.keys() - new.keys()),
        shards_changed=len(changed),
        features_added=int(np.setdiff1d(features_right, features_left).size),
        features_removed=int(np.setdiff1d(features_left, features_right).size),
        sources_before=tuple(sorted({entry.source_sha256 for entry in old.values()})),
        sources_after=tuple(sorted({entry.source_sha256 for entry in new.values()})),
        licence_before=", ".join(sorted({entry.licence for entry in old.values()})),
        licence_after=", ".join(sorted({entry.licence for entry in new.values()})),
    )


def _cell_ids(storage: Storage, entries: Sequence[ShardEntry]) -> npt.NDArray[np.uint64]:
    parts = [np.empty(0, np.uint64)]
    for entry in entries:
        ids = CellsFile(storage, entry).read(["cell_id"]).column(0).to_numpy()
        parts.append(ids[read_overlay(storage, entry).mask(entry.n_rows)])
    return np.concatenate(parts)


def _tokens(storage: Storage, entries: Iterable[ShardEntry]) -> npt.NDArray[np.uint32]:
    # All shards that one configuration made of one source have the same columns.
    one = {(entry.source_sha256, entry.config_digest): entry for entry in entries}
    return np.unique(np.concatenate([np.empty(0, np.uint32), *(read_tokens(storage, entry) for entry in one.values())]))
