"""An atlas: open it, look at its snapshots, commit to it."""

from __future__ import annotations

import json
import uuid
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cellmill.atlas.catalog import Catalog, Change, LogEntry
from cellmill.atlas.delta_log import Noted
from cellmill.atlas.entry import ShardEntry
from cellmill.atlas.forgotten import check_known, forgotten_versions
from cellmill.atlas.lease import Lease
from cellmill.atlas.record import encode, read_record
from cellmill.atlas.snapshot import Snapshot
from cellmill.atlas.standing import Standing, standing
from cellmill.atlas.tags import all_tags, find_tag
from cellmill.atlas.vocabulary_check import check_vocabulary
from cellmill.config import Config
from cellmill.errors import AtlasError, IntegrityError, SourceError
from cellmill.genes import Vocabulary, VocabularyStore
from cellmill.storage import Storage

if TYPE_CHECKING:
    from cellmill.atlas.verify import Verification

_MARKER = "atlas.json"
FORMAT = 1


class _Marker(Config):
    format: int
    id: str
    organisms: tuple[str, ...]
    exported_from: str = ""


class Atlas:
    """Cells of many data sets under one vocabulary, in snapshots that never change.

    Get one with `open`, `create` or `open_or_create`.

    Attributes
    ----------
    storage
        Where it is.
    id
        Its identity, which lineage carries.
    organisms
        Whose genes its vocabulary may hold.
    exported_from
        Identity of the snapshot that it is an export of; empty for none.
    """

    def __init__(self, storage: Storage, atlas_id: str, organisms: tuple[str, ...], exported_from: str = "") -> None:
        self.storage = storage
        self.id = atlas_id
        self.organisms = organisms
        self.exported_from = exported_from
        self.vocabulary_store = VocabularyStore(storage)
        self._catalog = Catalog(storage)

    def __repr__(self) -> str:
        return f"Atlas({self.url!r})"

    @property
    def url(self) -> str:
        """Path or URL of the atlas."""
        return self.storage.url

    @classmethod
    def open(cls, url: str | Path) -> Atlas:
        """Open an atlas.

        Raises
        ------
        AtlasError
            There is none, or a later version of Cellmill wrote it.
        """
        storage = Storage.open(url)
        if not storage.exists(_MARKER):
            raise AtlasError("There is no atlas here.", where=storage.url, fix="Make one with `cellmill ingest`.")
        try:
            version = int(json.loads(storage.get(_MARKER))["format"])
        except (ValueError, KeyError, TypeError, SourceError) as error:
            raise IntegrityError(
                f"{_MARKER} cannot be read: {error}.", where=storage.url, fix="Restore it from a copy of the atlas."
            ) from error
        if version > FORMAT:
            raise AtlasError(
                f"The atlas has format {version}; this Cellmill reads up to {FORMAT}.",
                where=storage.url,
                fix="Upgrade Cellmill.",
            )
        marker = read_record(storage, _MARKER, _Marker)
        if marker is None:
            raise AtlasError("There is no atlas here any more.", where=storage.url)
        return cls(storage, marker.id, marker.organisms, marker.exported_from)

    @classmethod
    def create(cls, url: str | Path, organisms: Sequence[str] = ("human",), *, exported_from: str = "") -> Atlas:
        """Make an empty atlas.

        Raises
        ------
        AtlasError
            There is one already.
        """
        storage = Storage.open(url)
        marker = _Marker(format=FORMAT, id=uuid.uuid4().hex, organisms=tuple(organisms), exported_from=exported_from)
        # The catalog comes first: whoever finds the marker finds a whole atlas.
        Catalog(storage).create()
        if not storage.put_if_absent(_MARKER, encode(marker)):
            raise AtlasError("There is an atlas already.", where=storage.url, fix="Open it, or choose another path.")
        return cls.open(url)

    @classmethod
    def open_or_create(cls, url: str | Path, organisms: Sequence[str] = ("human",)) -> Atlas:
        """Open the atlas, or make it; safe when several processes do so at once."""
        if not Storage.open(url).exists(_MARKER):
            try:
                return cls.create(url, organisms)
            except AtlasError:
                pass  # another process was first
        return cls.open(url)

    def vocabulary(self) -> Vocabulary:
        """Return the vocabulary as it is now.

        Raises
        ------
        IntegrityError
            It is damaged, or not the one that shards of the newest snapshot were written with.
        """
        # Shards are read first: the vocabulary only grows, and it grows before shards that need it are committed.
        _, entries = self._catalog.entries()
        vocabulary = self.vocabulary_store.load()
        check_vocabulary(vocabulary, entries, self.storage.join("vocabulary"))
        return vocabulary

    def snapshot(self, version: int | str | None = None) -> Snapshot:
        """Return a snapshot: the newest by default, or one by its number or tag.

        Raises
        ------
        AtlasError
            There is no such snapshot, or it is forgotten.
        """
        if isinstance(version, str):
            version = int(version) if version.isdecimal() else find_tag(self.storage, version).version
        if version is not None:
            check_known(self.storage, version)
        number, entries = self._catalog.entries(version)
        return Snapshot(self, number, entries)

    def log(self) -> list[LogEntry]:
        """Return what made each snapshot, newest first."""
        forgotten = forgotten_versions(self.storage)
        tags: dict[int, list[str]] = defaultdict(list)
        for tag in all_tags(self.storage):
            tags[tag.version].append(tag.name)
        return [
            line.model_copy(update={"tags": tuple(tags[line.version]), "forgotten": line.version in forgotten})
            for line in self.commits()
        ]

    def commits(self) -> list[LogEntry]:
        """Return what each commit says about itself, newest first, without what was said of it later: see `log`."""
        return self._catalog.log()

    def withdrawals(self, version: int, *, lifted: bool = False) -> list[Standing]:
        """Return the withdrawals that hold, with the cells that each took until a snapshot, the newest.

        Parameters
        ----------
        version
            Number of the newest snapshot.
        lifted
            Return also those that were lifted.

        Raises
        ------
        IntegrityError
            What is written of one is lost, damaged, or not what it was when it was made.
        """
        return standing(self.storage, self._catalog.ledger(version), lifted=lifted)

    def ledger(self, version: int) -> dict[int, Noted]:
        """Return what a snapshot's commit says of the withdrawals that were made until then, by number."""
        return self._catalog.ledger(version)

    def commit(
        self,
        add: Sequence[ShardEntry] = (),
        remove: Sequence[tuple[str, str]] = (),
        *,
        message: str = "",
        facts: dict[str, str] | None = None,
        ledger: Mapping[int, Noted] | None = None,
    ) -> int:
        """Add and remove shards in one transaction, on top of whatever is newest; return the snapshot's number.

        Shards that are in the newest snapshot already, just so, are not added again; if nothing is left to do there
        is no new snapshot.
        """

        def plan(snapshot: Snapshot) -> Change | None:
            there = {entry.key: entry for entry in snapshot.shards}
            new = [entry for entry in add if there.get(entry.key) != entry]
            gone = [key for key in remove if key in there]
            return Change(new, gone, message, facts or {}, ledger or {}) if new or gone else None

        return self.update(plan)[0]

    def update(self, plan: Callable[[Snapshot], Change | None]) -> tuple[int, bool]:
        """Commit what `plan` makes of the newest snapshot; it is asked again whenever another writer was faster.

        Returns
        -------
        tuple
            Number of the snapshot that holds the change, and whether this call made it.

        Raises
        ------
        ConflictError
            Other writers were faster, time after time.
        LockError
            This process was paused for so long that files which it was about to commit may have been collected.
        """
        # Under the lease, what `plan` finds in the storage or writes there is not collected before it is committed.
        with Lease(self.storage, "commit") as lease:

            def leased(version: int, entries: tuple[ShardEntry, ...]) -> Change | None:
                change = plan(Snapshot(self, version, entries))
                lease.check()
                return change

            return self._catalog.commit(leased)

    def fence(self, message: str) -> int:
        """Commit nothing, so that every commit that was planned before loses its race; return the number.

        No lease is taken: a garbage collection calls this while others wait for it.
        """
        return self._catalog.commit(lambda version, entries: Change(message=message))[0]

    def catalog_rows(self, name: str) -> list[ShardEntry]:
        """Return the rows in one file of the catalog, for whoever looks at many snapshots at once."""
        return self._catalog.rows(name)

    def verify(
        self, version: int | str | None = None, *, progress: Callable[[int], None] | None = None
    ) -> Verification:
        """Read every byte of a snapshot and compare it with its checksums."""
        from cellmill.atlas.verify import verify

        return verify(self.snapshot(version), progress=progress)
