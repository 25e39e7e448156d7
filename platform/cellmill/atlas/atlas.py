"""An atlas: vocabulary, catalogue, shards and cells in one folder, local or remote."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Sequence

from cellmill.atlas.catalog import Catalog, Commit
from cellmill.atlas.entry import ShardEntry
from cellmill.atlas.snapshot import Snapshot
from cellmill.atlas.verify import Verification, verify_snapshot
from cellmill.errors import AtlasError
from cellmill.genes import Vocabulary, VocabularyStore
from cellmill.storage import Storage

FORMAT = 1
"""Version of the layout on disk."""


class Atlas:
    """A versioned collection of cells.

    Use `open`, `create` or `open_or_create`.
    """

    def __init__(self, storage: Storage, atlas_id: str) -> None:
        self.storage = storage
        self.id = atlas_id
        self._catalog = Catalog(storage)

    @classmethod
    def open(cls, url: str) -> Atlas:
        """Open an atlas.

        Raises
        ------
        AtlasError
            There is no atlas, or a later Cellmill wrote it.
        """
        storage = Storage.open(url)
        if not storage.exists("atlas.json"):
            raise AtlasError(
                "There is no atlas here.", where=storage.url, fix="Check the path, or make one with `cellmill ingest`."
            )
        head = json.loads(storage.get("atlas.json"))
        if head.get("format") != FORMAT:
            raise AtlasError(
                f"The atlas has format {head.get('format')}; this Cellmill reads format {FORMAT}.",
                where=storage.url,
                fix="Install the Cellmill that wrote it.",
            )
        return cls(storage, head["id"])

    @classmethod
    def open_or_create(cls, url: str) -> Atlas:
        """Open an atlas, or make an empty one; of several processes that try at once, one makes it."""
        storage = Storage.open(url)
        if not storage.exists("atlas.json"):
            Catalog(storage).create()
            head = {"format": FORMAT, "id": uuid.uuid4().hex[:12]}
            storage.put_if_absent("atlas.json", json.dumps(head).encode())
        return cls.open(url)

    @property
    def url(self) -> str:
        """Where the atlas is."""
        return self.storage.url

    def vocabulary(self) -> Vocabulary:
        """Return the vocabulary as it is now."""
        return VocabularyStore(self.storage).load()

    def snapshot(self, version: int | None = None) -> Snapshot:
        """Return a snapshot; the newest without a version.

        Raises
        ------
        AtlasError
            There is no such snapshot.
        """
        found = self._catalog.version() if version is None else version
        return Snapshot(self.storage, self.id, found, self._catalog.entries(found))

    def log(self) -> list[Commit]:
        """Return the commits, newest first."""
        return self._catalog.log()

    def commit(self, rebase: Callable[[int, tuple[ShardEntry, ...]], Sequence[ShardEntry]], message: str) -> Snapshot:
        """Add shards in one commit that succeeds or changes nothing; see `Catalog.commit`."""
        return self.snapshot(self._catalog.commit(rebase, message))

    def verify(self, version: int | None = None) -> Verification:
        """Read every file of a snapshot and compare it with its checksum."""
        return verify_snapshot(self.snapshot(version))
