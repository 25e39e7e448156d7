"""Verification: every byte of a snapshot is read and compared with its checksums."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from cellmill.atlas.delta_log import log_key, read_commit
from cellmill.atlas.entry import ShardEntry
from cellmill.atlas.hash_run import HashRun
from cellmill.atlas.measured import read_measured
from cellmill.atlas.overlay import verify_overlay
from cellmill.atlas.part_rows import count_parts
from cellmill.atlas.shard import open_shard, read_tokens
from cellmill.atlas.snapshot import Snapshot
from cellmill.atlas.verify_records import check_tags, check_withdrawals
from cellmill.atlas.vocabulary_check import check_vocabulary
from cellmill.atlas.writing import checksum, shard_keys
from cellmill.config import Config
from cellmill.errors import CellmillError, IntegrityError
from cellmill.genes import VocabularyStore
from cellmill.storage import Storage

_THREADS = 8
_ROWS_AT_ONCE = 4096


class Damage(Config):
    """Something in an atlas that is not as it was written."""

    where: str
    what: str


class Verification(Config):
    """What `verify` found.

    Attributes
    ----------
    version
        The snapshot.
    shards, bytes
        How much was read.
    damage
        What is not as it was written; empty for a sound snapshot.
    """

    version: int
    shards: int
    bytes: int
    damage: tuple[Damage, ...]

    @property
    def sound(self) -> bool:
        """Whether everything is as it was written."""
        return not self.damage

    def check(self) -> None:
        """Refuse a damaged snapshot.

        Raises
        ------
        IntegrityError
            Names the first place and how many there are.
        """
        if self.damage:
            first = self.damage[0]
            raise IntegrityError(
                f"{len(self.damage)} parts of snapshot {self.version} are damaged, first: {first.what}",
                where=first.where,
                fix="Restore them from a copy of the atlas, or delete the shards' files and ingest again.",
            )


def verify(snapshot: Snapshot, *, progress: Callable[[int], None] | None = None) -> Verification:
    """Compare all files of a snapshot with their checksums.

    Parameters
    ----------
    snapshot
        What to verify.
    progress
        Called with the number of bytes read since the last call.
    """
    storage = snapshot.atlas.storage
    damage: list[Damage] = []
    total = 0

    def attempt(where: str, check: Callable[[], None]) -> None:
        try:
            check()
        except CellmillError as error:
            damage.append(Damage(where=error.where or where, what=error.what))

    attempt(storage.join("catalog"), lambda: _check_catalog(snapshot))
    attempt(storage.join("vocabulary"), lambda: _check_vocabulary(snapshot))
    for check_records in (check_tags, check_withdrawals):
        attempt(storage.url, partial(check_records, snapshot))
    for entry in snapshot.shards:
        where = storage.join(entry.shard_path)
        before = len(damage)
        try:
            found, size = checksum(storage, shard_keys(storage, entry.dataset, entry.digest, entry.layout))
        except CellmillError as error:
            damage.append(Damage(where=error.where or where, what=error.what))
            continue
        total += size
        if found != entry.checksum:
            damage.append(
                Damage(where=where, what="The shard's bytes do not have the checksum they were written with.")
            )
        if len(damage) == before:
            attempt(where, partial(_check_shard, snapshot, entry))
        if progress is not None:
            progress(size)
    for path in sorted({entry.hash_run_path for entry in snapshot.shards if entry.hash_run}):
        attempt(storage.join(path), partial(_check_run, storage, path))
    return Verification(version=snapshot.version, shards=len(snapshot.shards), bytes=total, damage=tuple(damage))


def _check_catalog(snapshot: Snapshot) -> None:
    """Read what leads to the shards anew, every commit up to the snapshot's."""
    atlas = type(snapshot.atlas).open(snapshot.atlas.url)
    keys = [log_key("catalog", version) for version in range(snapshot.version + 1)]
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(partial(read_commit, atlas.storage), keys))
    if atlas.snapshot(snapshot.version).shards != snapshot.shards:
        raise IntegrityError("The catalog has other rows than a moment ago.", where=atlas.storage.join("catalog"))


def _check_vocabulary(snapshot: Snapshot) -> None:
    vocabulary = VocabularyStore(snapshot.atlas.storage).load()
    alike = {(entry.vocabulary_size, entry.vocabulary_digest): entry for entry in snapshot.shards}
    for entry in alike.values():
        check_vocabulary(vocabulary, [entry], snapshot.atlas.storage.join("vocabulary"))


def _check_run(storage: Storage, path: str) -> None:
    HashRun(storage, path).verify()


def _check_shard(snapshot: Snapshot, entry: ShardEntry) -> None:
    """Check what checksums do not tell: that the shard, its metadata and the catalog belong together."""
    shard = open_shard(snapshot.atlas.storage, entry)
    if entry.layout == "anndata":
        # The checksum is that of the link; what is read of the store is compared with the cells' content hashes.
        for start in range(0, entry.n_rows, _ROWS_AT_ONCE):
            shard.gather([start], [min(start + _ROWS_AT_ONCE, entry.n_rows)])
    hidden = verify_overlay(snapshot.atlas.storage, entry).hidden.size
    rows = snapshot.cells_file(entry).read(["row"]).num_rows
    if rows != entry.n_rows or entry.n_rows - hidden != entry.n_cells:
        raise IntegrityError(
            f"The catalog says {entry.n_cells:,} of {entry.n_rows:,} cells; "
            f"the metadata has {rows:,}, {hidden:,} hidden."
        )
    if entry.parts:
        _check_parts(snapshot.atlas.storage, entry)


def _check_parts(storage: Storage, entry: ShardEntry) -> None:
    read_measured(storage, entry, read_tokens(storage, entry))
    shown = verify_overlay(storage, entry).mask(entry.n_rows)
    every = {part.key: n for part, n in count_parts(storage, entry, np.ones(entry.n_rows, bool))}
    visible = {part.key: n for part, n in count_parts(storage, entry, shown)}
    for part in entry.sources:
        if (every.get(part.key, 0), visible.get(part.key, 0)) != (part.n_rows, part.n_cells):
            raise IntegrityError(
                f"The catalog says {part.n_cells:,} of {part.n_rows:,} cells of {part.dataset}; "
                f"the metadata has {visible.get(part.key, 0):,} of {every.get(part.key, 0):,}."
            )
