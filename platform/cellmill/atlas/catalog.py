"""The catalogue: a Delta table with one row a shard, whose version is the snapshot's number."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from cellmill.atlas.entry import CATALOG_SCHEMA, ShardEntry
from cellmill.config import Config
from cellmill.errors import AtlasError, ConflictError
from cellmill.storage import Storage

_KEY = "catalog"
_APP = "atlas"
_ATTEMPTS = 20
_JITTER_S = 0.05


class Commit(Config):
    """One line of an atlas's history."""

    version: int
    time: float
    message: str
    added: int
    removed: int
    cells: int


class Catalog:
    """The Delta table below an atlas.

    Parameters
    ----------
    storage
        Storage of the atlas.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def create(self) -> None:
        """Create the empty table: version 0. Old versions are never cleaned up behind a reader's back."""
        DeltaTable.create(
            self._storage.delta_uri(_KEY),
            schema=CATALOG_SCHEMA,
            mode="ignore",
            configuration={"delta.enableExpiredLogCleanup": "false"},
            storage_options=self._storage.delta_options(),
        )

    def version(self) -> int:
        """Return the newest version."""
        return int(self._table().version())

    def entries(self, version: int) -> tuple[ShardEntry, ...]:
        """Return the shards of a version, by data set and digest.

        Raises
        ------
        AtlasError
            There is no such version.
        """
        table = self._table(version).to_pyarrow_table()
        entries = [ShardEntry.model_validate(row) for row in table.to_pylist()]
        return tuple(sorted(entries, key=lambda entry: (entry.dataset, entry.digest)))

    def log(self) -> list[Commit]:
        """Return the commits, newest first."""
        commits = []
        for line in self._table().history():
            note = json.loads(line.get("cellmill", "{}"))
            commits.append(
                Commit(
                    version=line["version"],
                    time=line["timestamp"] / 1000,
                    message=note.get("message", "created"),
                    added=note.get("added", 0),
                    removed=note.get("removed", 0),
                    cells=note.get("cells", 0),
                )
            )
        return sorted(commits, key=lambda commit: -commit.version)

    def commit(self, rebase: Callable[[int, tuple[ShardEntry, ...]], Sequence[ShardEntry]], message: str) -> int:
        """Append shards in one conditional commit.

        Two appends to a Delta table never conflict by themselves, so each carries a transaction id of its base
        version: of two writers with one base the second fails, and starts again from the newer base.

        Parameters
        ----------
        rebase
            Called with the base version and its shards; returns the shards to add. Nothing to add commits nothing.
        message
            What is said of the commit in the log.

        Returns
        -------
        int
            The version that holds the shards.

        Raises
        ------
        ConflictError
            Others were faster twenty times in a row.
        """
        for attempt in range(_ATTEMPTS):
            base = self.version()
            added = rebase(base, self.entries(base))
            if not added:
                return base
            if self._append(base, added, message):
                return base + 1
            time.sleep(random.random() * _JITTER_S * 2 ** min(attempt, 6))
        raise ConflictError(
            f"Other writers committed first {_ATTEMPTS} times in a row.",
            where=self._storage.join(_KEY),
            fix="Run it again; what was written is kept and will be reused.",
        )

    def _append(self, base: int, added: Sequence[ShardEntry], message: str) -> bool:
        rows = pa.Table.from_pylist([entry.model_dump() for entry in added], schema=CATALOG_SCHEMA)
        note = {"message": message, "added": len(added), "cells": sum(entry.n_cells for entry in added)}
        try:
            write_deltalake(
                self._table(base),
                rows,
                mode="append",
                commit_properties=CommitProperties(
                    app_transactions=[Transaction(_APP, base + 1)], custom_metadata={"cellmill": json.dumps(note)}
                ),
            )
        except CommitFailedError:
            return False
        return True

    def _table(self, version: int | None = None) -> Any:
        uri = self._storage.join(_KEY)
        try:
            return DeltaTable(uri, version=version, storage_options=self._storage.delta_options())
        except TableNotFoundError:
            raise AtlasError("The atlas has no catalogue.", where=uri, fix="Check the path.") from None
        except DeltaError as error:
            if version is None:
                raise AtlasError(f"The catalogue cannot be read: {error}", where=uri) from error
            raise AtlasError(
                f"There is no snapshot {version}.", where=uri, fix="See `cellmill atlas log` for those there are."
            ) from error
