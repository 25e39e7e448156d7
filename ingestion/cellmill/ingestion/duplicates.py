"""Exact duplicates: cells of equal content, found in everything that a snapshot holds.

Memory is bounded whatever the size of the new data set and of the index: the keys of new cells are dealt out to parts
by their first bits, in temporary files if they are many, and part after part is sorted and searched for.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from cellmill.atlas import ShardEntry
from cellmill.atlas.cell_keys import as_items, shard_keys
from cellmill.atlas.content import splitmix64
from cellmill.atlas.hash_index import HashIndex
from cellmill.atlas.hash_search import NOBODY
from cellmill.atlas.overlay import Overlay
from cellmill.atlas.part_rows import overlaid
from cellmill.atlas.spill import Spill
from cellmill.atlas.unmarking import firsts, unmark
from cellmill.ingestion.config import DuplicateConfig
from cellmill.ingestion.owners import Owners
from cellmill.ingestion.restoring import restore
from cellmill.ingestion.superseding import Leaving
from cellmill.storage import Storage

U64 = npt.NDArray[np.uint64]
Bits = dict[int, npt.NDArray[np.uint8]]

_PART = 1 << 20
THIS = "this ingestion"


@dataclass
class Found:
    """What the search for duplicates found.

    Attributes
    ----------
    entries
        The new shards, as the snapshot will have them.
    changed
        Shards that the snapshot had and whose rows change: hidden cells whose twin goes away are shown again,
        marked ones lose the mark, and runs of hashes are merged.
    duplicates
        For each source digest, how many of its cells came earlier, by the data set that had them.
    bytes_read
        Bytes of hash runs that were read to find them.
    """

    entries: list[ShardEntry] = field(default_factory=list)
    changed: list[ShardEntry] = field(default_factory=list)
    duplicates: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    bytes_read: int = 0


def find_duplicates(
    storage: Storage,
    new: Sequence[ShardEntry],
    stay: Sequence[ShardEntry],
    gone: Sequence[Leaving],
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
        Rows that the snapshot loses.
    config
        What to do with duplicates.
    """
    found = Found()
    stay = sorted(stay, key=lambda entry: entry.key)
    index = HashIndex(storage, stay)
    owners = Owners(storage, index.entries)
    n_parts = _n_parts([*new, *(leaver.entry for leaver in gone)])
    twins: Bits = {i: np.zeros(-(-entry.n_rows // 8), np.uint8) for i, entry in enumerate(new)}
    with Spill(_WIDTH, n_parts) as spilled, Spill(_WIDTH, n_parts) as leaving, Spill(4, _n_groups(stay)) as orphans:
        if config.policy != "keep" or gone:
            _spill(storage, [(entry, None) for entry in new], spilled, config)
        _spill(storage, [(leaver.entry, leaver.rows) for leaver in gone], leaving, config)
        for number in range(n_parts):
            cells = _Cells.of(spilled.part(number))
            if config.policy != "keep":
                _find(cells, index, owners, new, config, twins, found)
            if gone:
                _orphans(cells, _Cells.of(leaving.part(number)), index, config, orphans)
        found.bytes_read = index.bytes_read
        overlaid = [_overlaid(storage, entry, twins[i], config) for i, entry in enumerate(new)]
        restored = restore(storage, index.entries, orphans, config.min_genes)
    changed = {entry.key: entry for entry in restored}
    left = [firsts(storage, leaver.entry, leaver.rows, config.min_genes) for leaver in gone]
    now = [changed.get(entry.key, entry) for entry in index.entries]
    changed |= {entry.key: entry for entry in unmark(storage, now, left, config.min_genes)}
    rows = index.add([*overlaid, *changed.values()])
    found.entries = [rows[entry.key] for entry in overlaid]
    new_keys = {entry.key for entry in new}
    found.changed = [entry for key, entry in sorted(rows.items()) if key not in new_keys]
    return found


# A cell as it is spilled: the halves of its hash; its barcode's hash and the number of its shard; its rank among the
# new cells; its row, and whether it is nearly empty.
_WIDTH = 5


@dataclass(frozen=True)
class _Cells:
    """Cells of one part, sorted: equal ones side by side, in the order in which they come.

    Attributes
    ----------
    keys : uint64 [n, 3]
        As `shard_keys` gives them.
    by_barcode : bool [n]
        Whether the cell is nearly empty.
    shard, row : int64 [n]
        Where each cell is.
    first : int64 [n_contents]
        The first of each kind of equal cells.
    kind : int64 [n]
        Of each cell, by its place in `first`.
    """

    keys: U64
    by_barcode: npt.NDArray[np.bool_]
    shard: npt.NDArray[np.int64]
    row: npt.NDArray[np.int64]
    first: npt.NDArray[np.int64]
    kind: npt.NDArray[np.int64]

    @classmethod
    def of(cls, rows: U64) -> _Cells:
        by_barcode = (rows[:, 4] & np.uint64(1)).astype(bool)
        barcode = rows[:, 2] & np.uint64(0xFFFFFFFF00000000)
        name = np.where(by_barcode, barcode, np.uint64(0))
        order = np.lexsort((rows[:, 3], name, rows[:, 1], rows[:, 0]))
        rows, name = rows[order], name[order]
        keys = np.stack([rows[:, 0], rows[:, 1], name], axis=1)
        starts = np.concatenate([[True], (keys[1:] != keys[:-1]).any(axis=1)])[: len(keys)]
        return cls(
            keys=keys,
            by_barcode=by_barcode[order],
            shard=(rows[:, 2] & np.uint64(0xFFFFFFFF)).astype(np.int64),
            row=(rows[:, 4] >> np.uint64(1)).astype(np.int64),
            first=np.flatnonzero(starts),
            kind=np.cumsum(starts) - 1,
        )

    def contents(self) -> tuple[U64, npt.NDArray[np.bool_]]:
        """Return the key of each kind, ascending, and whether barcodes count."""
        return self.keys[self.first], self.by_barcode[self.first]


def _spill(
    storage: Storage,
    shards: Sequence[tuple[ShardEntry, npt.NDArray[np.bool_] | None]],
    spill: Spill,
    config: DuplicateConfig,
) -> None:
    """Deal the cells of shards out to parts, or only some of their rows."""
    rank = {digest: i for i, digest in enumerate(dict.fromkeys(entry.config_digest for entry, _ in shards))}
    for i, (entry, only) in enumerate(shards):
        keys, table = shard_keys(storage, entry, "n_genes", "source_row")
        near = table.column("n_genes").to_numpy() < config.min_genes
        source_row = table.column("source_row").to_numpy().astype(np.uint64)
        rows = np.empty((len(keys), _WIDTH), np.uint64)
        rows[:, :3] = keys
        rows[:, 2] |= np.uint64(i)
        rows[:, 3] = np.uint64(rank[entry.config_digest] << 40) + source_row
        rows[:, 4] = np.arange(len(keys), dtype=np.uint64) << np.uint64(1) | near
        # Nearly empty cells are often equal: their barcodes spread them.
        spread = np.where(near, keys[:, 0] ^ splitmix64(keys[:, 2]), keys[:, 0])
        part = ((spread >> np.uint64(32)) * np.uint64(spill.n_parts) >> np.uint64(32)).astype(np.int64)
        if only is not None:
            rows, part = rows[only], part[only]
        spill.add(rows, part)


def _find(
    cells: _Cells,
    index: HashIndex,
    owners: Owners,
    new: Sequence[ShardEntry],
    config: DuplicateConfig,
    twins: Bits,
    found: Found,
) -> None:
    """Find which cells of a part have twins."""
    if not len(cells.keys):
        return
    there = index.find(*cells.contents())
    owner = there.shown
    later = np.ones(len(cells.keys), bool)
    later[cells.first] = False
    if config.policy == "drop":
        owner = np.minimum(owner, there.hidden)
        later |= np.bincount(cells.kind)[cells.kind] > 1
    whose = owner[cells.kind]
    twin = np.flatnonzero((whose != NOBODY) | later)
    ordered = twin[np.lexsort((cells.shard[twin], whose[twin]))]
    pairs, starts = np.unique(np.stack([whose[ordered], cells.shard[ordered]]), axis=1, return_index=True)
    for (who, shard), these in zip(pairs.T.tolist(), np.split(ordered, starts[1:]), strict=False):
        counts = {THIS: these.size} if who == NOBODY else owners.count(who, cells.keys[these], cells.by_barcode[these])
        found.duplicates[new[shard].config_digest].update(counts)
    for shard in np.unique(cells.shard[twin]).tolist():
        rows = cells.row[twin[cells.shard[twin] == shard]]
        np.bitwise_or.at(twins[shard], rows >> 3, (np.uint8(1) << (rows & 7).astype(np.uint8)).astype(np.uint8))


def _orphans(cells: _Cells, leaving: _Cells, index: HashIndex, config: DuplicateConfig, orphans: Spill) -> None:
    """Find the shards with a hidden cell whose twin leaves, and that no cell which is shown equals."""
    keys, by_barcode = leaving.contents()
    stays = np.isin(as_items(keys), as_items(cells.contents()[0]))
    keys, by_barcode = keys[~stays], by_barcode[~stays]
    there = index.find(keys, by_barcode)
    alone = (there.shown == NOBODY) & (there.n_hidden > 0)
    if config.policy == "drop":
        alone &= there.n_hidden == 1
    chosen = np.flatnonzero(alone)
    if chosen.size:
        rows = np.column_stack(
            [keys[chosen], there.hidden[chosen].astype(np.uint64) << np.uint64(1) | by_barcode[chosen]]
        )
        orphans.add(rows, there.hidden[chosen] * orphans.n_parts // len(index.entries))


def _overlaid(storage: Storage, entry: ShardEntry, twins: npt.NDArray[np.uint8], config: DuplicateConfig) -> ShardEntry:
    """Return a new shard with its duplicates hidden or marked."""
    rows = np.flatnonzero(np.unpackbits(twins, bitorder="little")[: entry.n_rows]).astype(np.uint32)
    none = np.empty(0, np.uint32)
    overlay = Overlay(none, rows) if config.policy == "mark" else Overlay(rows, none)
    return overlaid(storage, entry, overlay)


def _n_parts(entries: Sequence[ShardEntry]) -> int:
    return max(1, -(-sum(entry.n_rows for entry in entries) // _PART))


def _n_groups(entries: Sequence[ShardEntry]) -> int:
    """Return in how many groups shards are looked at when hidden cells are shown again: about 16 in each."""
    return max(1, len(entries) // 16)
