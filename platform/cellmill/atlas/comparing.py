"""What changed between two snapshots of an atlas."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from cellmill.atlas.cells import CellsFile
from cellmill.atlas.entry import ShardEntry
from cellmill.atlas.measured import measured_by_part
from cellmill.atlas.overlay import read_overlay
from cellmill.atlas.part import Part
from cellmill.atlas.part_rows import part_of_rows
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
        Digests of its sources.
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
    found = {}
    for name in sorted({name for side in (before, after) for entry in side.shards for name in entry.datasets}):
        old = {entry.key: entry for entry in before.shards if name in entry.datasets}
        new = {entry.key: entry for entry in after.shards if name in entry.datasets}
        change = _change(before.atlas.storage, name, old, new)
        if change is not None:
            found[name] = change
    return Comparison(
        before=before.version,
        after=after.version,
        cells_before=before.n_cells,
        cells_after=after.n_cells,
        datasets=found,
    )


_Shards = dict[tuple[str, str], ShardEntry]


def _change(storage: Storage, name: str, old: _Shards, new: _Shards) -> DatasetChange | None:
    both = old.keys() & new.keys()
    changed = {key for key in both if old[key].overlay != new[key].overlay}
    gone = [old[key] for key in sorted(old.keys() - new.keys() | changed)]
    came = [new[key] for key in sorted(new.keys() - old.keys() | changed)]
    if not gone and not came:
        return None
    left, right = _cell_ids(storage, gone, name), _cell_ids(storage, came, name)
    features_left, features_right = _tokens(storage, old.values(), name), _tokens(storage, new.values(), name)
    sources_before, sources_after = _parts(old, name), _parts(new, name)
    return DatasetChange(
        kind="added" if not old else "removed" if not new else "changed",
        cells_before=sum(part.n_cells for part in sources_before),
        cells_after=sum(part.n_cells for part in sources_after),
        cells_added=int(np.setdiff1d(right, left).size),
        cells_removed=int(np.setdiff1d(left, right).size),
        shards_added=len(new.keys() - old.keys()),
        shards_removed=len(old.keys() - new.keys()),
        shards_changed=len(changed),
        features_added=int(np.setdiff1d(features_right, features_left).size),
        features_removed=int(np.setdiff1d(features_left, features_right).size),
        sources_before=tuple(sorted({part.source_digest for part in sources_before})),
        sources_after=tuple(sorted({part.source_digest for part in sources_after})),
        licence_before=", ".join(sorted({part.licence for part in sources_before})),
        licence_after=", ".join(sorted({part.licence for part in sources_after})),
    )


def _parts(shards: _Shards, name: str) -> list[Part]:
    return [part for entry in shards.values() for part in entry.sources if part.dataset == name]


def _cell_ids(storage: Storage, entries: Sequence[ShardEntry], name: str) -> npt.NDArray[np.uint64]:
    parts = [np.empty(0, np.uint64)]
    for entry in entries:
        ids = CellsFile(storage, entry).read(["cell_id"]).column(0).to_numpy()
        mine = np.array([part.dataset == name for part in entry.sources])[part_of_rows(storage, entry)]
        parts.append(ids[mine & read_overlay(storage, entry).mask(entry.n_rows)])
    return np.concatenate(parts)


def _tokens(storage: Storage, entries: Iterable[ShardEntry], name: str) -> npt.NDArray[np.uint32]:
    # All that one configuration made of one source has the same columns.
    one = {(part.source_digest, part.config_digest): entry for entry in entries for part in entry.sources}
    shards = {entry.key: entry for entry in one.values()}
    found = [np.empty(0, np.uint32)]
    for entry in shards.values():
        measured = measured_by_part(storage, entry, read_tokens(storage, entry))
        found += [tokens for part, tokens in measured if part.dataset == name]
    return np.unique(np.concatenate(found))
