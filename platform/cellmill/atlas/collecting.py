"""Garbage collection: what no snapshot needs is deleted, and snapshots are forgotten when that is asked for.

Nothing is deleted that a running process may still commit. It says so by its lease (see `cellmill.atlas.lease`), and a
collection waits for commits that are under way, and keeps commits that come from beginning, while it deletes. Files
that never were in a snapshot are spared while they are young: a run that was cut off may go on with them. They are
not where cells are withdrawn and old snapshots are forgotten: they may hold such cells, and shall be gone afterwards.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from pydantic import Field

from cellmill.atlas.entry import ShardEntry
from cellmill.atlas.files import File, Unit, list_files, list_units
from cellmill.atlas.forgotten import forgotten_versions, mark, unmark
from cellmill.atlas.history import catalog_lifetimes, is_retained
from cellmill.atlas.lease import FOLDER as LEASES
from cellmill.atlas.lease import Lease, LeaseRecord, all_leases, await_commits, live_leases, lost_key
from cellmill.atlas.remembering import Memory
from cellmill.atlas.standing import Standing
from cellmill.atlas.tags import all_tags
from cellmill.atlas.taken import taken_key
from cellmill.atlas.withdrawals import active_withdrawals
from cellmill.config import Config
from cellmill.errors import AtlasError, ConflictError
from cellmill.scratch import delete_left_folders

if TYPE_CHECKING:
    from cellmill.atlas.atlas import Atlas

GRACE_S = 3600.0
_WAIT_S = 60.0
_TOMBSTONE_S = 7 * 86_400.0
_AT_ONCE = 64
_THREADS = 16

Clock = Callable[[], float]


class Forget(Config):
    """Which snapshots are forgotten. The newest and those with a tag never are.

    Attributes
    ----------
    keep_last
        How many of the newest stay.
    before
        Only older ones are forgotten: a date or time, UTC, ISO 8601.
    """

    keep_last: int = Field(default=1, ge=1)
    before: str | None = Field(default=None, pattern=r"^\d{4}-\d{2}-\d{2}(T\d{2}:\d{2}(:\d{2})?Z?)?$")

    @property
    def reason(self) -> str:
        """For people."""
        last = "it is not the newest" if self.keep_last == 1 else f"it is not among the {self.keep_last} newest"
        return f"{last} and has no tag" + (f", and it is older than {self.before}" if self.before else "")


class Collection(Config):
    """What was deleted, or would be.

    Attributes
    ----------
    snapshot
        The newest.
    forgotten
        Snapshots that were forgotten now.
    tagged
        Snapshots that were not, because of their tags.
    units, files, bytes
        What was deleted: shards, lists, folders and the like by kind; files; bytes.
    young, leased
        Things that no snapshot needs and that were spared, because they are young or a running process may need them.
    withheld
        Withdrawals whose cells tagged snapshots still hold.
    untold
        Snapshots that were forgotten now and are too damaged to tell which cells of withdrawals they held.
    """

    snapshot: int
    forgotten: tuple[int, ...]
    tagged: tuple[int, ...]
    units: dict[str, int]
    files: int
    bytes: int
    young: int
    leased: int
    withheld: dict[str, tuple[int, ...]]
    untold: tuple[int, ...] = ()


def collect(
    atlas: Atlas,
    forget: Forget | None = None,
    *,
    grace_s: float = GRACE_S,
    wait_s: float = _WAIT_S,
    dry_run: bool = False,
    clock: Clock = time.time,
) -> Collection:
    """Delete what no snapshot needs.

    Parameters
    ----------
    atlas
        The atlas.
    forget
        Which snapshots are forgotten first; None for none.
    grace_s
        Files that never were in a snapshot are spared until they are so old, in seconds; none of an ingestion are
        while withdrawals hold and snapshots are forgotten.
    wait_s
        How long to wait for commits that are under way.
    dry_run
        Delete nothing, mark nothing, and say what would be.
    clock
        Seconds since 1970.

    Raises
    ------
    ConflictError
        A commit was under way all the time; nothing was deleted.
    """
    storage = atlas.storage
    log = atlas.log()
    newest = log[0].version
    tagged = {tag.version for tag in all_tags(storage)}
    before = forgotten_versions(storage)
    wanted: set[int] = set()
    untold: tuple[int, ...] = ()
    if forget is not None:
        last = {line.version for line in log[: forget.keep_last]}
        old = {line.version for line in log if forget.before is None or line.time < forget.before}
        wanted = old - last - before
    if not dry_run and wanted - tagged:
        assert forget is not None
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(clock()))
        memory = Memory(atlas)
        records = [memory.of(version, stamp, forget.reason) for version in sorted(wanted - tagged)]
        untold = tuple(record.version for record in records if memory.lacks(record))
        mark(storage, records)
        # Whoever gives a tag does so first and then looks for the mark; of the two one sees the other.
        for version in {tag.version for tag in all_tags(storage)} & (wanted - tagged):
            unmark(storage, version)
            tagged.add(version)
    units = list_units(storage)
    hurry = forget is not None and bool(active_withdrawals(storage))
    sweep = _Sweep(atlas, before | (wanted - tagged), grace_s, hurry, clock)
    if dry_run:
        sweep.look(units, live_leases(storage, clock()))
    else:
        with Lease(storage, "collect", clock=clock) as lease:
            leases = _settled(atlas, wait_s, clock)
            sweep.look(units, leases)
            sweep.delete(lease)
    return Collection(
        snapshot=newest,
        forgotten=tuple(sorted(wanted - tagged)),
        tagged=tuple(sorted(wanted & tagged)),
        units=dict(Counter(unit.kind for unit in sweep.doomed)),
        files=sum(len(unit.files) for unit in sweep.doomed),
        bytes=sum(unit.size for unit in sweep.doomed),
        young=sweep.young,
        leased=sweep.leased,
        withheld=_withheld(atlas, before | (wanted - tagged)),
        untold=untold,
    )


class _Sweep:
    """One look at what is there and what is needed, and the deletion of the rest."""

    def __init__(self, atlas: Atlas, forgotten: set[int], grace_s: float, hurry: bool, clock: Clock) -> None:
        self._atlas, self._forgotten, self._clock = atlas, forgotten, clock
        self._grace_s, self._hurry = grace_s, hurry
        self.doomed: list[Unit] = []
        self.young = self.leased = 0

    def look(self, units: Iterable[Unit], leases: Iterable[LeaseRecord]) -> None:
        """Choose what is deleted."""
        storage = self._atlas.storage
        newest = self._atlas.snapshot().version
        needed: set[tuple[str, str]] = set()
        once: set[tuple[str, str]] = set()
        there = {unit.name for unit in units if unit.kind == "catalog"}
        for path, lifetime in catalog_lifetimes(storage, newest).items():
            retained = is_retained(lifetime, self._forgotten)
            if not retained and f"catalog/{path}" not in there:
                continue  # deleted by an earlier collection
            names = needed if retained else once
            names.add(("catalog", f"catalog/{path}"))
            for entry in self._atlas.catalog_rows(path):
                names.update(_names(entry))
        for number, noted in self._atlas.ledger(newest).items():
            needed.add(("withdrawals", taken_key(number, noted.cells)))
        leases = list(leases)
        for unit in units:
            if (unit.kind, unit.name) in needed:
                continue
            if any(lease.covers(unit.files[0].key) for lease in leases):
                self.leased += 1
            elif (unit.kind, unit.name) not in once and self._is_young(unit):
                self.young += 1
            else:
                self.doomed.append(unit)

    def _is_young(self, unit: Unit) -> bool:
        if unit.kind == "withdrawals":
            return False  # written under the lease of a commit, which has ended: nobody goes on with it
        return not (self._hurry and unit.may_hold_cells) and self._clock() - unit.modified < self._grace_s

    def delete(self, lease: Lease) -> None:
        """Delete what was chosen; lists of shards come last, so that a deletion that is cut off can be taken up."""
        delete_left_folders()  # of killed processes on this machine; cells may be in them
        storage = self._atlas.storage
        ordered = sorted(self.doomed, key=lambda unit: unit.kind == "catalog")
        with ThreadPoolExecutor(_THREADS) as pool:
            for first in range(0, len(ordered), _AT_ONCE):
                lease.check()
                if lease.record.expires < self._clock():
                    raise ConflictError("The collection was paused for too long.", where=storage.url, fix="Run again.")
                list(pool.map(lambda unit: unit.delete(storage), ordered[first : first + _AT_ONCE]))
        for file in _old_tombstones(list_files(storage, LEASES), self._clock()):
            storage.delete(file.key)


def _settled(atlas: Atlas, wait_s: float, clock: Clock) -> list[LeaseRecord]:
    """Wait until no commit is under way, end leases that have expired, and return those that live."""
    storage = atlas.storage
    if (busy := await_commits(storage, wait_s, clock)) is not None:
        raise ConflictError(
            f"A commit is under way ({busy.owner}); nothing was deleted.",
            where=storage.join(busy.key),
            fix="Run again when it is done. If that process is gone, its lease expires within minutes.",
        )
    now = clock()
    expired = [lease for lease in all_leases(storage) if lease.has_ended(storage, now) and lease.kind != "collect"]
    for lease in expired:
        storage.put(lost_key(lease.id), b"")
        storage.delete(lease.key)
    if expired:
        # A process that was paused may wake up in the middle of its commit: it loses this race, and then finds out.
        atlas.fence("garbage collection: end of a run that was cut off")
    return live_leases(storage, clock())


def _names(entry: ShardEntry) -> list[tuple[str, str]]:
    found = [
        ("shards", f"{entry.dataset}/{entry.digest}"),
        *(("reports", f"reports/datasets/{part.dataset}/{part.source_digest[:16]}.json") for part in entry.sources),
    ]
    if entry.overlay:
        found.append(("overlays", entry.overlay_path))
    if entry.hash_run:
        found.append(("hashes", entry.hash_run_path))
    return found


def _old_tombstones(files: Iterable[File], now: float) -> list[File]:
    return [file for file in files if file.key.endswith(".lost") and now - file.modified > _TOMBSTONE_S]


def _withheld(atlas: Atlas, forgotten: set[int]) -> dict[str, tuple[int, ...]]:
    """Return the snapshots that still hold what was withdrawn, by withdrawal."""
    log = atlas.log()
    withdrawals = {str(one.number): one for one in atlas.withdrawals(log[0].version)}
    found: dict[str, tuple[int, ...]] = {}
    for line in log if withdrawals else ():
        number = line.facts.get("withdrawal", "")
        if number in withdrawals:
            older = (other.version for other in log if other.version < line.version)
            kept = [
                version for version in older if version not in forgotten and _holds(atlas, version, withdrawals[number])
            ]
            if kept:
                found[number] = tuple(sorted(kept))
    return found


def _holds(atlas: Atlas, version: int, withdrawal: Standing) -> bool:
    try:
        shards = atlas.snapshot(version).shards
    except AtlasError:
        return False
    return any(withdrawal.rows(atlas.storage, entry).either.any() for entry in shards)
