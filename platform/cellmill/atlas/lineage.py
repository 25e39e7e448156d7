"""Where the cells of a snapshot came from: data sets, and their source files with digests and licences."""

from __future__ import annotations

import hashlib
from itertools import groupby
from typing import TYPE_CHECKING

from cellmill.atlas.entry import ShardEntry
from cellmill.lineage import Fact, Lineage

if TYPE_CHECKING:
    from cellmill.atlas.selection import Selection
    from cellmill.atlas.snapshot import Snapshot


def snapshot_lineage(snapshot: Snapshot, selection: Selection | None) -> Lineage:
    """Return the lineage of a snapshot, or of the selected part of it.

    A data set's digest is the sha256 over the names and checksums of its shards.
    """
    shards = snapshot.shards if selection is None else selection.shards
    counts = [entry.n_cells for entry in snapshot.shards] if selection is None else selection.counts.tolist()
    facts: dict[str, Fact] = {"cells": sum(counts), "shards": len(shards)}
    if selection is not None and selection.where is not None:
        facts["where"] = selection.where
    if snapshot.atlas.exported_from:
        facts["exported from"] = snapshot.atlas.exported_from
    pairs = list(zip(shards, counts, strict=True))
    return Lineage(
        kind="snapshot",
        name=f"snapshot {snapshot.version}",
        digest=snapshot.name,
        location=snapshot.atlas.url,
        facts=facts,
        parents=tuple(_dataset(name, list(group)) for name, group in groupby(pairs, key=lambda pair: pair[0].dataset)),
    )


def _dataset(name: str, pairs: list[tuple[ShardEntry, int]]) -> Lineage:
    state = hashlib.sha256("".join(f"{entry.digest} {entry.checksum}\n" for entry, _ in pairs).encode())
    sources: dict[str, list[tuple[ShardEntry, int]]] = {}
    for entry, count in pairs:
        sources.setdefault(entry.source_sha256, []).append((entry, count))
    return Lineage(
        kind="dataset",
        name=name,
        digest=state.hexdigest(),
        facts={
            "cells": sum(count for _, count in pairs),
            "organism": ", ".join(sorted({entry.organism for entry, _ in pairs})),
            "licence": ", ".join(sorted({entry.licence for entry, _ in pairs})),
        },
        parents=tuple(_source(found) for found in sources.values()),
    )


def _source(pairs: list[tuple[ShardEntry, int]]) -> Lineage:
    entry = pairs[0][0]
    return Lineage(
        kind="source",
        name=entry.source_url.rsplit("/", 1)[-1],
        digest=entry.source_sha256,
        location=entry.source_url,
        facts={"licence": entry.licence, "cells": sum(count for _, count in pairs)},
    )
