"""What a compaction will do: which shards it reads, and which it writes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from cellmill.atlas.entry import COMPACTED, ShardEntry
from cellmill.atlas.part import Part, joined
from cellmill.atlas.snapshot import Snapshot
from cellmill.errors import AtlasError

RECIPE = 1
"""Version of the way in which shards are compacted."""


@dataclass(frozen=True)
class CompactionPlan:
    """What a compaction will do.

    Attributes
    ----------
    inputs
        Shards that are read.
    seed, shard_cells
        Order and size of the new ones.
    left_out
        Data sets that are linked, and whose counts stay where they are because nobody named them.
    """

    inputs: tuple[ShardEntry, ...]
    seed: int
    shard_cells: int
    left_out: tuple[str, ...] = ()

    @property
    def n_rows(self) -> int:
        """Cells, hidden ones included."""
        return sum(entry.n_rows for entry in self.inputs)

    @cached_property
    def datasets(self) -> tuple[str, ...]:
        """Names of the data sets."""
        return tuple(sorted({name for entry in self.inputs for name in entry.datasets}))

    @cached_property
    def settings(self) -> str:
        """Identity of the order and size of the new shards."""
        text = json.dumps({"seed": self.seed, "shard_cells": self.shard_cells, "recipe": RECIPE}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def content(self) -> str:
        """Identity of what is compacted: sha256 over names and checksums of the shards."""
        lines = (f"{entry.dataset}/{entry.digest} {entry.checksum}\n" for entry in self.inputs)
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    @cached_property
    def digests(self) -> tuple[str, ...]:
        """Identities of the new shards, by number."""
        n = -(-self.n_rows // self.shard_cells)
        texts = (f"{self.settings}/{self.content}/{number}/{n}" for number in range(n))
        return tuple(hashlib.sha256(text.encode()).hexdigest()[:32] for text in texts)

    @property
    def is_done(self) -> bool:
        """Whether the shards are what one compaction with these settings made already, all of it and nothing else."""
        made = {(entry.config_digest, entry.source_digest) for entry in self.inputs}
        return all(entry.parts for entry in self.inputs) and len(made) == 1 and next(iter(made))[0] == self.settings

    @property
    def names(self) -> list[str]:
        """Beginnings of the keys that are written or found."""
        found = []
        for digest in self.digests:
            found += [f"shards/{COMPACTED}/{digest}.zarr/", f"cells/{COMPACTED}/{digest}.parquet"]
        return found

    @property
    def temporary_bytes(self) -> int:
        """About how much temporary files take: entries uncompressed, and metadata."""
        return sum(entry.nnz for entry in self.inputs) * 8 + self.n_rows * 512

    @cached_property
    def parts(self) -> dict[tuple[str, str], Part]:
        """The sources of all shards, without numbers of cells.

        Raises
        ------
        AtlasError
            One source is there under two configurations.
        """
        found: dict[tuple[str, str], Part] = {}
        for entry in self.inputs:
            for part in entry.sources:
                known = found.setdefault(part.key, part)
                if known.config_digest != part.config_digest:
                    raise AtlasError(
                        "A source is in the snapshot under two configurations.",
                        where=f"{part.dataset}: {part.source_url}",
                    )
                update = {
                    "withdrawals": joined([known.withdrawals, part.withdrawals]),
                    "types": {**known.types, **part.types},
                    "n_rows": 0,
                    "n_cells": 0,
                }
                found[part.key] = known.model_copy(update=update)
        return found


def plan_compaction(snapshot: Snapshot, datasets: Sequence[str], seed: int, shard_cells: int) -> CompactionPlan:
    """Choose the shards of data sets; by default of all whose counts are in the atlas.

    Raises
    ------
    AtlasError
        The snapshot has no such data set, or no cells.
    """
    there = sorted({name for entry in snapshot.shards for name in entry.datasets})
    if missing := [name for name in datasets if name not in there]:
        raise AtlasError(
            f"Snapshot {snapshot.version} has no data set {missing[0]!r}.",
            where=snapshot.atlas.url,
            fix=f"It has: {', '.join(there) or 'none'}.",
        )
    wanted = set(datasets or there)
    chosen = [entry for entry in snapshot.shards if wanted & set(entry.datasets)]
    linked = [] if datasets else [entry for entry in chosen if entry.layout == "anndata"]
    left_out = tuple(sorted({name for entry in linked for name in entry.datasets}))
    inputs = tuple(entry for entry in chosen if datasets or entry.layout != "anndata")
    if not inputs:
        what = "All data sets are linked." if linked else "The snapshot has no cells."
        fix = "Name data sets to copy their cells into the atlas." if linked else "Ingest a data set first."
        raise AtlasError(what, where=snapshot.atlas.url, fix=fix)
    return CompactionPlan(inputs, seed, shard_cells, left_out)
