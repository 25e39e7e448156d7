"""Exact duplicates: cells of equal content, found in everything that a snapshot holds.

The index of a snapshot is named in its catalog rows: each source has one run of hashes, of the cells that the snapshot
shows. So the index travels in time with the snapshot, and a source that is replaced takes its hashes with it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd

from cellmill.atlas import ShardEntry
from cellmill.atlas.cells import CellsFile
from cellmill.atlas.content import splitmix64
from cellmill.atlas.hash_run import HashRun, sort_hashes, write_run
from cellmill.atlas.overlay import Overlay, read_overlay, write_overlay
from cellmill.ingestion.config import DuplicateConfig
from cellmill.storage import Storage

U64 = npt.NDArray[np.uint64]


@dataclass
class Found:
    """What the search for duplicates found.

    Attributes
    ----------
    entries
        The new shards, as the snapshot will have them.
    changed
        Shards that the snapshot had and that change: hidden cells whose twin goes away are shown again.
    duplicates
        For each source digest, how many of its cells came earlier, by the data set that had them.
    bytes_read
        Bytes of hash runs that were read.
    """

    entries: list[ShardEntry] = field(default_factory=list)
    changed: list[ShardEntry] = field(default_factory=list)
    duplicates: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    bytes_read: int = 0


def find_duplicates(
    storage: Storage,
    new: Sequence[ShardEntry],
    stay: Sequence[ShardEntry],
    gone: Sequence[ShardEntry],
    config: DuplicateConfig,
) -> Found:
    """Hide or mark the cells of new shards that are there already.

    Parameters
    ----------
    storage
        The atlas's storage.
    new
        Shards to be added; of equal cells among them the first stays, by the order of sources here, then by row in
        the source.
    stay
        Shards that the snapshot keeps.
    gone
        Shards that the snapshot loses.
    config
        What to do with duplicates.
    """
    found = Found()
    runs = {entry.hash_run: entry for entry in stay if entry.hash_run}
    opened = {name: HashRun(storage, entry.hash_run_path) for name, entry in runs.items()}
    cells = _Cells.read(storage, new, config.min_genes)
    owner = np.full(cells.n, "", dtype=object)
    if config.policy != "keep":
        for name, run in opened.items():
            hit = np.zeros(cells.n, dtype=bool)
            hit[cells.order] = run.contains(cells.keys[cells.order])
            owner[hit & (owner == "")] = runs[name].dataset
        within = cells.later_twins() & (owner == "")
        owner[within] = "this ingestion"
    twin = owner != ""
    _write_new(storage, new, cells, twin, owner, config, found)
    if gone:
        _restore(storage, stay, list(opened.values()), cells.keys[~twin], config, found)
    found.bytes_read = sum(run.bytes_read for run in opened.values())
    return found


@dataclass(frozen=True)
class _Cells:
    """Keys of the cells of several shards, in the order of sources and rows.

    Parameters
    ----------
    keys : uint64[n, 2]
        What duplicates are equal in.
    shard, row : int64[n]
        Where each cell is.
    order : int64[n]
        Positions in ascending order of keys, those of equal keys as they come.
    """

    keys: U64
    shard: npt.NDArray[np.int64]
    row: npt.NDArray[np.int64]
    order: npt.NDArray[np.int64]

    @property
    def n(self) -> int:
        return len(self.keys)

    @classmethod
    def read(cls, storage: Storage, entries: Sequence[ShardEntry], min_genes: int) -> _Cells:
        keys, shards, rows, source_rows, sources = [], [], [], [], []
        rank = {digest: i for i, digest in enumerate(dict.fromkeys(entry.config_digest for entry in entries))}
        for i, entry in enumerate(entries):
            table = CellsFile(storage, entry).read(["content_hash", "n_genes", "barcode", "source_row"])
            n = entry.n_rows
            keys.append(_keys(table, min_genes))
            shards.append(np.full(n, i))
            rows.append(np.arange(n))
            source_rows.append(table.column("source_row").to_numpy())
            sources.append(np.full(n, rank[entry.config_digest]))
        if not keys:
            none = np.empty(0, np.int64)
            return cls(np.empty((0, 2), np.uint64), none, none, none)
        by_source = np.lexsort((np.concatenate(source_rows), np.concatenate(sources)))
        ordered = np.concatenate(keys)[by_source]
        return cls(
            keys=ordered,
            shard=np.concatenate(shards)[by_source],
            row=np.concatenate(rows)[by_source],
            order=np.lexsort((np.arange(len(ordered)), ordered[:, 1], ordered[:, 0])),
        )

    @cached_property
    def _by_shard(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        order = np.argsort(self.shard, kind="stable")
        bounds = np.searchsorted(self.shard[order], np.arange(int(self.shard.max(initial=-1)) + 2))
        return order, bounds

    def of(self, shard: int) -> npt.NDArray[np.int64]:
        """Return the positions of one shard's cells."""
        order, bounds = self._by_shard
        return order[bounds[shard] : bounds[shard + 1]]

    def later_twins(self) -> npt.NDArray[np.bool_]:
        """Return which cells have an equal one before them."""
        ordered = self.keys[self.order]
        same = np.concatenate([[False], (ordered[1:] == ordered[:-1]).all(axis=1)])[: self.n]
        twins = np.zeros(self.n, dtype=bool)
        twins[self.order] = same
        return twins


def _keys(table: object, min_genes: int) -> U64:
    """Return what duplicates are equal in: the content, and for nearly empty cells the barcode as well."""
    import pyarrow as pa

    assert isinstance(table, pa.Table)
    column = table.column("content_hash").combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks)
    raw = np.frombuffer(column.buffers()[1], dtype=">u8", offset=column.offset * 16, count=2 * len(column))
    keys: U64 = raw.astype(np.uint64).reshape(-1, 2)
    small = table.column("n_genes").to_numpy() < min_genes
    if small.any():
        names = table.column("barcode").filter(pa.array(small)).to_numpy().astype(object)
        barcode = pd.util.hash_array(names, categorize=False)
        keys[small, 0] ^= barcode
        keys[small, 1] ^= splitmix64(barcode)
    return keys


def _write_new(
    storage: Storage,
    new: Sequence[ShardEntry],
    cells: _Cells,
    twin: npt.NDArray[np.bool_],
    owner: npt.NDArray[np.object_],
    config: DuplicateConfig,
    found: Found,
) -> None:
    """Write the overlays and hash runs of new shards."""
    shown = np.ones(cells.n, dtype=bool) if config.policy != "keep_first" else ~twin
    by_source: dict[str, list[int]] = defaultdict(list)
    for i, entry in enumerate(new):
        by_source[entry.config_digest].append(i)
    for digest, members in by_source.items():
        mine = np.concatenate([cells.of(i) for i in members])
        run = write_run(storage, cells.keys[mine[shown[mine]]])
        found.duplicates[digest].update(owner[mine[twin[mine]]].tolist())
        for i in members:
            here = cells.of(i)
            rows = np.sort(cells.row[here[twin[here]]]).astype(np.uint32)
            none = np.empty(0, np.uint32)
            overlay = Overlay(rows, none) if config.policy == "keep_first" else Overlay(none, rows)
            name = write_overlay(storage, new[i].dataset, overlay)
            n_cells = new[i].n_rows - int(overlay.hidden.size)
            found.entries.append(new[i].model_copy(update={"overlay": name, "hash_run": run, "n_cells": n_cells}))


def _restore(
    storage: Storage,
    stay: Sequence[ShardEntry],
    runs: Sequence[HashRun],
    added: U64,
    config: DuplicateConfig,
    found: Found,
) -> None:
    """Show hidden cells again whose twin is neither in the snapshot any more nor among the new cells."""
    known = sort_hashes(added)
    by_source: dict[str, list[ShardEntry]] = defaultdict(list)
    for entry in stay:
        by_source[entry.config_digest].append(entry)
    for entries in by_source.values():
        if not any(entry.overlay for entry in entries):
            continue
        cells = _Cells.read(storage, entries, config.min_genes)
        overlays = [read_overlay(storage, entry) for entry in entries]
        hidden = np.zeros(cells.n, dtype=bool)
        for i, overlay in enumerate(overlays):
            here = cells.of(i)
            hidden[here] = np.isin(cells.row[here], overlay.hidden)
        candidates = cells.order[hidden[cells.order]]
        present = _among(cells.keys[candidates], known)
        for run in runs:
            present |= run.contains(cells.keys[candidates])
        orphans = candidates[~present]
        # Of several orphans of one content the first is shown.
        keys = cells.keys[orphans]
        first = np.concatenate([[True], (keys[1:] != keys[:-1]).any(axis=1)])[: len(orphans)]
        back = orphans[first]
        if not back.size:
            continue
        known = sort_hashes(np.concatenate([known, cells.keys[back]]))
        hidden[back] = False
        run_name = write_run(storage, cells.keys[~hidden])
        for i, (entry, overlay) in enumerate(zip(entries, overlays, strict=True)):
            here = cells.of(i)
            rows = np.sort(cells.row[here[hidden[here]]]).astype(np.uint32)
            name = write_overlay(storage, entry.dataset, Overlay(rows, overlay.duplicate))
            update = {"overlay": name, "hash_run": run_name, "n_cells": entry.n_rows - int(rows.size)}
            found.changed.append(entry.model_copy(update=update))


def _among(keys: U64, known: U64) -> npt.NDArray[np.bool_]:
    """Return which keys are among the known ones."""
    pair = np.dtype([("high", np.uint64), ("low", np.uint64)])
    return np.isin(np.ascontiguousarray(keys).view(pair).ravel(), np.ascontiguousarray(known).view(pair).ravel())
