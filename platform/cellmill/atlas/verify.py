"""Reading every byte of a snapshot again, and holding it against its checksum."""

from __future__ import annotations

from cellmill.atlas.cells import read_cells
from cellmill.atlas.shard import fingerprint
from cellmill.atlas.snapshot import Snapshot
from cellmill.config import Config
from cellmill.errors import CellmillError


class Verification(Config):
    """What `verify_snapshot` found.

    Attributes
    ----------
    version, shards, cells, bytes
        What was read.
    faults
        One line for each shard that is not as it was written.
    """

    version: int
    shards: int
    cells: int
    bytes: int
    faults: tuple[str, ...]


def verify_snapshot(snapshot: Snapshot) -> Verification:
    """Return what is wrong with a snapshot's files; no exception is raised for it."""
    faults, total = [], 0
    for entry in snapshot.shards:
        size, checksum = fingerprint(snapshot.storage, entry.shard_key)
        total += size
        if size == 0:
            faults.append(f"{entry.shard_key}: missing")
        elif checksum != entry.checksum:
            faults.append(f"{entry.shard_key}: does not have the checksum it was written with")
        try:
            read_cells(snapshot.storage, entry)
        except CellmillError as error:
            faults.append(f"{entry.cells_key}: {error.what}")
    return Verification(
        version=snapshot.version,
        shards=len(snapshot.shards),
        cells=snapshot.n_cells,
        bytes=total,
        faults=tuple(faults),
    )
