"""Deletion of shards that a commit left behind, because it has others in their place, without withdrawn cells."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from cellmill.atlas.files import Unit
from cellmill.atlas.history import named_shards
from cellmill.atlas.lease import Lease, all_leases, await_commits

if TYPE_CHECKING:
    from cellmill.atlas.atlas import Atlas

_WAIT_S = 20.0


def purge(atlas: Atlas, shards: Iterable[tuple[str, str]], own: Lease | None = None, *, wait_s: float = _WAIT_S) -> int:
    """Delete those shards that no snapshot names and no other process may still commit.

    Parameters
    ----------
    atlas
        The atlas.
    shards
        Data sets and digests.
    own
        A lease of the caller, which has committed what it wanted.
    wait_s
        How long to wait for commits of others.

    Returns
    -------
    int
        How many are left, for the garbage collection, because another process may need them.
    """
    storage = atlas.storage
    doomed = set(shards) - {entry.key for entry in atlas.snapshot().shards}
    if not doomed:
        return 0
    with Lease(storage, "collect") as lease:
        if await_commits(storage, wait_s) is not None:
            return len(doomed)
        doomed -= {entry.key for entry in named_shards(atlas)}
        # An owner whose lease has expired may only be paused: what it holds is for a collection that tells it so.
        others = [other for other in all_leases(storage) if own is None or other.id != own.record.id]
        spared = {
            (dataset, digest)
            for dataset, digest in doomed
            if any(other.covers(f"cells/{dataset}/{digest}.parquet") for other in others)
        }
        for dataset, digest in sorted(doomed - spared):
            lease.check()
            Unit("shards", f"{dataset}/{digest}").delete(storage)
        return len(spared)
