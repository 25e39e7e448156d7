"""A source's plan: everything that is decided before its matrix is read."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from cellmill.atlas.content import feature_keys
from cellmill.atlas.withdrawals import Withdrawal
from cellmill.errors import ConfigError, SourceError
from cellmill.genes import ColumnMapping, Organism
from cellmill.ingestion.config import IngestConfig, SourceConfig
from cellmill.ingestion.features import find_matrix, plan_features
from cellmill.ingestion.features import identity as identity_of_features
from cellmill.ingestion.filtering import parse_where
from cellmill.ingestion.memory import chunks_of, entries_at_once, refuse_blocks, refuse_wide, text_of
from cellmill.ingestion.obs import kept_columns, renamed_columns
from cellmill.ingestion.quality import feature_kinds
from cellmill.ingestion.sources import Source
from cellmill.ingestion.sources.base import ObsBlocks
from cellmill.ingestion.sources.joined import JoinedSource
from cellmill.ingestion.unread import unread_counts
from cellmill.ingestion.withdrawn_columns import lacking

RECIPE = 1
"""Version of what ingestion makes of an input. Only a change of the result raises it: an upgrade rewrites nothing."""

# Where files are and how they are opened: the digest of the input says what is in them. What the data set is called
# is said apart, whoever named it.
_FILES = {"path": True, "format": True, "features": True}
_NOT_OF_THE_RESULT: Any = {**_FILES, "dataset": True, "join": {"__all__": _FILES}}


@dataclass(frozen=True)
class SourcePlan:
    """One source, ready to be read in any process.

    Attributes
    ----------
    location
        Path or URL by which it is opened again, or None for an AnnData in memory.
    format
        Name of the format that opens it.
    dataset, url, source_digest
        Name and identity.
    files
        Digests of the files, with blanks between, where several are joined; empty for one.
    stamp
        Size and time of change of the file when it was planned.
    organism
        Given or recognised.
    place
        Where the counts are.
    mapping
        Columns to features.
    left_out, unpaired
        Cells that are left out, and others, of which one of several matrices knows nothing; see `JoinedSource`.
    unread
        Places of further counts that nobody asked for.
    columns
        Columns of obs that are kept: names in the atlas, and in the source.
    unkept
        Names in the atlas that other columns of obs would have.
    n_cells, n_shards
        Cells that are read, and in how many shards they will be.
    chunks
        Ranges of rows; each is read by one task.
    entries_at_once
        Stored values that a task reads at once, of a few cells of its chunk.
    digest
        Identity of the result: of the input, of what the configuration says about it, and of the recipe.
    """

    location: str | None
    format: str
    config: SourceConfig
    dataset: str
    url: str
    source_digest: str
    files: str
    stamp: str
    organism: Organism
    place: str
    mapping: ColumnMapping
    left_out: dict[str, int]
    unpaired: dict[str, int]
    unread: tuple[str, ...]
    columns: dict[str, str]
    unkept: frozenset[str]
    n_cells: int
    n_shards: int
    chunks: tuple[tuple[int, int], ...]
    entries_at_once: int
    digest: str

    @property
    def cells_in(self) -> int:
        """Number of cells in the source, with those that are left out before they are read."""
        return self.n_cells + sum(self.left_out.values())

    def shard_digest(self, number: int) -> str:
        """Return the identity of one shard."""
        return hashlib.sha256(f"{self.digest}/{number}/{self.n_shards}".encode()).hexdigest()[:32]

    @property
    def division(self) -> str:
        """Identity of the division into chunks."""
        return hashlib.sha256(repr(self.chunks).encode()).hexdigest()[:8]

    @cached_property
    def feature_keys(self) -> npt.NDArray[np.uint64]:
        """Keys of the features in content hashes."""
        return feature_keys([feature.id for feature in self.mapping.features])

    @cached_property
    def feature_kinds(self) -> npt.NDArray[np.int32]:
        """What cells are judged by, feature by feature."""
        return feature_kinds(self.mapping.features)

    @property
    def shard_digests(self) -> list[str]:
        """Identities of all shards, by number."""
        return [self.shard_digest(number) for number in range(self.n_shards)]

    @property
    def shuffle_key(self) -> np.uint64:
        """Seed of the order in which cells are written."""
        return np.uint64(int(self.source_digest[16:32], 16))


def plan_source(
    source: Source,
    location: str | None,
    format: str,
    config: SourceConfig,
    ingest: IngestConfig,
    withdrawals: Sequence[Withdrawal] = (),
) -> SourcePlan:
    """Look at a source's metadata and decide what will be done with it.

    Columns by which cells were withdrawn, of this data set or of others, are kept even if nobody asked for them.

    Raises
    ------
    SourceError, CountsError
        The source cannot be read, or holds no raw counts.
    GeneMappingError
        The organism cannot be recognised.
    ConfigError
        A column that the configuration names is not there.
    ResourceError
        What is decoded or written as a whole does not fit into a task's memory.
    """
    memory = ingest.task_memory_mb
    place = find_matrix(source, config, memory)
    if not len(source.var(place)):
        raise SourceError("There are no features.", where=f"{source.url}: {place}", fix="Give the data with its genes.")
    mapping, organism = plan_features(source, place, config, ingest)
    predicate = parse_where(config.where, source)
    columns = source.obs_columns()
    wanted = renamed_columns(columns, config.obs)
    if missing := [name for name in wanted if name not in columns]:
        near = difflib.get_close_matches(missing[0], columns, n=1)
        raise ConfigError(
            f"The data set has no obs column {missing[0]!r}.",
            where=source.url,
            fix=f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(columns) or 'none'}.",
        )
    if len(set(wanted.values())) < len(wanted):
        raise ConfigError("Two obs columns would have one name.", where=source.url, fix="Give each its own.")
    kept = {target: name for name, target in kept_columns(columns, config.obs).items()}
    others = {target: name for name, target in kept_columns(columns, "all").items() if target not in kept}
    asked = {name for withdrawal in withdrawals for name in lacking(withdrawal, source.name, kept)}
    further = {target: name for target, name in others.items() if target in asked}
    files = source.files if isinstance(source, JoinedSource) else ()
    n_cells = source.n_cells
    read = tuple(dict.fromkeys((kept | further).values()))
    if isinstance(source, ObsBlocks):
        asked_of = predicate.columns if predicate is not None else ()
        refuse_blocks(source.obs_blocks((*read, *asked_of)), memory, f"{source.url}: obs")
    text = text_of(source, read)
    refuse_wide(text.mean, min(n_cells, ingest.shard_cells), memory, source.url)
    identity = {
        "input": source.digest,
        "source": config.model_dump(mode="json", exclude=_NOT_OF_THE_RESULT, exclude_defaults=True),
        "format": format,
        "dataset": source.name,
        **identity_of_features(ingest, mapping),
        "quality": ingest.quality.model_dump(mode="json", exclude_defaults=True),
        "shard_cells": ingest.shard_cells,
        "recipe": RECIPE,
        **({"further columns": sorted(further)} if further else {}),
    }
    return SourcePlan(
        location=location,
        format=format,
        config=config,
        dataset=source.name,
        url=source.url,
        source_digest=source.digest,
        files=" ".join(files) if len(files) > 1 else "",
        stamp=source.stamp,
        organism=organism,
        place=place,
        mapping=mapping,
        left_out=source.left_out if isinstance(source, JoinedSource) else {},
        unpaired=source.unpaired if isinstance(source, JoinedSource) else {},
        unread=unread_counts(source, place, memory),
        columns=kept | further,
        unkept=frozenset(others.keys() - further.keys()),
        n_cells=n_cells,
        n_shards=-(-n_cells // ingest.shard_cells),
        chunks=chunks_of(source.starts(place), memory, text.most),
        entries_at_once=entries_at_once(memory),
        digest=hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest(),
    )


def shard_of(
    source_rows: npt.NDArray[np.int64], key: np.uint64, n_shards: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
    """Return the shard of each cell, and the rank by which cells are ordered in it.

    Both are functions of the row and the key alone, so that chunks need not know of each other: the rank is a mix of
    row and key, and the shard its remainder.
    """
    x = source_rows.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) ^ key
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    rank = x ^ (x >> np.uint64(31))
    return (rank % np.uint64(n_shards)).astype(np.int64), rank
