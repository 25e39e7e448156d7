"""Where the cells of a snapshot came from: data sets, and their source files with digests and licences."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from cellmill.atlas.entry import ShardEntry
from cellmill.atlas.part import Part
from cellmill.atlas.part_rows import parts_of_cells
from cellmill.lineage import Fact, Lineage

if TYPE_CHECKING:
    from cellmill.atlas.selection import Selection
    from cellmill.atlas.snapshot import Snapshot

_Cells = tuple[ShardEntry, Part, int]
"""Cells of one source in one shard: the shard, what it has of the source, and how many of these."""


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
    datasets: dict[str, list[_Cells]] = {}
    for number, (entry, count) in enumerate(zip(shards, counts, strict=True)):
        for part, n in _counted(entry, count, selection, number):
            datasets.setdefault(part.dataset, []).append((entry, part, n))
    return Lineage(
        kind="snapshot",
        name=f"snapshot {snapshot.version}",
        digest=snapshot.name,
        location=snapshot.atlas.url,
        facts=facts,
        parents=tuple(_dataset(name, found) for name, found in sorted(datasets.items())),
    )


def _counted(entry: ShardEntry, count: int, selection: Selection | None, number: int) -> list[tuple[Part, int]]:
    """Return the sources of some cells of a shard, and how many are of each."""
    if not entry.parts:
        return [(entry.sources[0], count)]
    if selection is None or (selection.rows(number) is None and not entry.overlay):
        return [(part, part.n_cells) for part in entry.sources]
    table = selection.table(number, ["dataset", "source_digest"])
    counts = np.bincount(parts_of_cells(table, entry.sources), minlength=len(entry.sources)).tolist()
    return [(part, n) for part, n in zip(entry.sources, counts, strict=True) if n]


def _dataset(name: str, found: list[_Cells]) -> Lineage:
    state = hashlib.sha256("".join(f"{entry.digest} {entry.checksum}\n" for entry, _, _ in found).encode())
    sources: dict[str, list[_Cells]] = {}
    for cells in found:
        sources.setdefault(cells[1].source_digest, []).append(cells)
    return Lineage(
        kind="dataset",
        name=name,
        digest=state.hexdigest(),
        facts={
            "cells": sum(n for _, _, n in found),
            "organism": ", ".join(sorted({part.organism for _, part, _ in found})),
            "licence": ", ".join(sorted({part.licence for _, part, _ in found})),
        },
        parents=tuple(_source(some) for some in sources.values()),
    )


def _source(found: list[_Cells]) -> Lineage:
    part = found[0][1]
    return Lineage(
        kind="source",
        name=part.source_url.rsplit("/", 1)[-1],
        digest=part.source_digest,
        location=part.source_url,
        facts={"licence": part.licence, "cells": sum(n for _, _, n in found)},
    )
