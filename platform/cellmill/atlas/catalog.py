"""The catalog: a Delta table with one row per shard, whose version is the snapshot's number."""

from __future__ import annotations

import hashlib
import json
import random
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError

from cellmill.atlas.delta_log import NewFile, Noted, digest_of_files, encode_commit, log_key, read_commit, sealed
from cellmill.atlas.entry import SCHEMA, ShardEntry, from_table, to_table
from cellmill.atlas.history import commit_infos
from cellmill.config import Config
from cellmill.errors import AtlasError, CellmillError, ConflictError, IntegrityError, SourceError, StorageError
from cellmill.storage import Storage
from cellmill.store_errors import first_line

_FOLDER = "catalog"
_ATTEMPTS = 60
_FIRST_PAUSE_S = 0.01
_LONGEST_PAUSE_S = 1.0
_READS = 6
_CHECKPOINT_EVERY = 100
_MOST_FILES = 64
"""With so many files the next commit puts all rows into one: a snapshot stays quick to open, however old the atlas."""


@dataclass(frozen=True)
class Change:
    """What a commit does to the catalog.

    Parameters
    ----------
    add
        Rows to add. A row whose shard is there already replaces it.
    remove
        (data set, digest) of shards that the next snapshot does not have.
    message
        For the log.
    facts
        More for the log.
    ledger
        What is new of withdrawals; what earlier commits said of others stands.
    """

    add: Sequence[ShardEntry] = ()
    remove: Sequence[tuple[str, str]] = ()
    message: str = ""
    facts: dict[str, str] = field(default_factory=dict)
    ledger: Mapping[int, Noted] = field(default_factory=dict)


class LogEntry(Config):
    """One line of the log: a snapshot, what made it, its tags, and whether it is forgotten."""

    version: int
    time: str
    message: str
    facts: dict[str, str]
    tags: tuple[str, ...] = ()
    forgotten: bool = False


class Catalog:
    """Reads and extends the catalog.

    Parameters
    ----------
    storage
        The atlas's storage.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.uri = storage.delta_uri(_FOLDER)
        self._options = storage.delta_options()
        self._files: dict[str, list[ShardEntry]] = {}

    def create(self) -> None:
        """Make an empty catalog, version 0, unless there is one."""
        # Of two processes that let Delta create a table here, one would make a second, empty version. So the first
        # version is made aside, and put here by whoever comes first.
        first = log_key(_FOLDER, 0)
        if self.storage.exists(first):
            return
        with TemporaryDirectory() as aside:
            DeltaTable.create(
                aside,
                SCHEMA,
                name="cellmill catalog",
                # By default Delta forgets versions after 30 days; a snapshot must stay readable until it is purged.
                configuration={"delta.enableExpiredLogCleanup": "false"},
            )
            text = (Path(aside) / first.partition("/")[2]).read_text()
        self.storage.put_if_absent(first, sealed(text, []))

    def version(self) -> int:
        """Return the number of the newest snapshot."""
        return self._state()[0]

    def entries(self, version: int | None = None) -> tuple[int, tuple[ShardEntry, ...]]:
        """Return a snapshot's number and its rows, sorted by data set and digest.

        Raises
        ------
        AtlasError
            There is no such snapshot.
        IntegrityError
            A file of the catalog is missing or unreadable.
        """
        number, paths = self._state(version)
        rows = [entry for path in paths for entry in self._read(path)]
        return number, tuple(sorted(rows, key=lambda entry: entry.key))

    def commit(self, plan: Callable[[int, tuple[ShardEntry, ...]], Change | None]) -> tuple[int, bool]:
        """Apply a change to the newest snapshot, in one Delta transaction.

        Parameters
        ----------
        plan
            Called with the newest snapshot's number and rows, and again with newer ones whenever another writer was
            faster. Returns the change, or None if there is nothing to do.

        Returns
        -------
        tuple
            Number of the snapshot that holds the change, and whether this call made it.

        Raises
        ------
        ConflictError
            Other writers were faster, time after time.
        """
        pause = _FIRST_PAUSE_S
        for _ in range(_ATTEMPTS):
            base, paths = self._state()
            files = {path: self._read(path) for path in paths}
            rows = tuple(sorted((row for found in files.values() for row in found), key=lambda row: row.key))
            change = plan(base, rows)
            if change is None:
                return base, False
            if self._write(base, files, change):
                return base + 1, True
            time.sleep(random.uniform(0, pause))
            pause = min(2 * pause, _LONGEST_PAUSE_S)
        raise ConflictError(
            f"{_ATTEMPTS} attempts to commit were lost to other writers.",
            where=self.uri,
            fix="Run again: what is written stays, only the commit is repeated.",
        )

    def rows(self, name: str) -> list[ShardEntry]:
        """Return the rows in one file of the catalog.

        Raises
        ------
        IntegrityError
            It is missing or unreadable.
        """
        return self._read(name)

    def ledger(self, version: int) -> dict[int, Noted]:
        """Return what a snapshot's commit says of the withdrawals that were made until then, by number.

        Raises
        ------
        IntegrityError
            The commit is damaged.
        """
        return read_commit(self.storage, log_key(_FOLDER, version)).ledger

    def log(self) -> list[LogEntry]:
        """Return what made each snapshot, newest first."""
        lines = []
        for version, info in enumerate(commit_infos(self.storage, self.version())):
            stamp = time.gmtime(int(info.get("timestamp", 0)) / 1000)
            lines.append(
                LogEntry(
                    version=version,
                    time=time.strftime("%Y-%m-%dT%H:%M:%SZ", stamp),
                    message=info.get("message") or ("created" if version == 0 else str(info.get("operation", ""))),
                    facts=json.loads(info.get("facts", "{}")),
                )
            )
        return lines[::-1]

    def _write(self, base: int, files: dict[str, list[ShardEntry]], change: Change) -> bool:
        """Try the commit once: rows that stay are copied from the files that lose some."""
        gone = {*change.remove, *(entry.key for entry in change.add)}
        whole = len(files) >= _MOST_FILES
        touched = {path for path, rows in files.items() if whole or any(row.key in gone for row in rows)}
        stay = [row for path in touched for row in files[path] if row.key not in gone]
        rows = sorted([*stay, *change.add], key=lambda row: row.key)
        add = [self._write_rows(rows)] if rows else []
        commit = encode_commit(
            add,
            touched,
            files=[*(path for path in files if path not in touched), *(file.path for file in add)],
            message=change.message,
            facts=change.facts,
            ledger={**self.ledger(base), **change.ledger},
        )
        if not self.storage.put_if_absent(log_key(_FOLDER, base + 1), commit):
            for file in add:
                self.storage.delete(f"{_FOLDER}/{file.path}")
            return False
        if (base + 1) % _CHECKPOINT_EVERY == 0:
            # The commit stands without it: a checkpoint only saves readers the log before it.
            with suppress(DeltaError, OSError, CellmillError):
                self._table().create_checkpoint()
        return True

    def _write_rows(self, rows: Sequence[ShardEntry]) -> NewFile:
        sink = BytesIO()
        pq.write_table(to_table(rows), sink, compression="zstd")
        content = sink.getvalue()
        # The first part is a checksum; the second keeps a loser, who deletes its file, off the winner's.
        path = f"{hashlib.sha256(content).hexdigest()[:32]}-{secrets.token_hex(4)}.parquet"
        self.storage.put(f"{_FOLDER}/{path}", content)
        return NewFile(path, len(content), len(rows))

    def _state(self, version: int | None = None) -> tuple[int, list[str]]:
        """Return a snapshot's number and its files, which are those that its commit names."""
        for attempt in range(1, _READS + 1):
            try:
                table = self._table(version)
                number, paths = int(table.version()), _paths(table)
                if read_commit(self.storage, log_key(_FOLDER, number)).files == digest_of_files(paths):
                    return number, paths
                raise IntegrityError(
                    f"The catalog's log does not lead to the files that snapshot {number} had.",
                    where=self.uri,
                    fix="Restore the log from a copy of the atlas.",
                )
            except (IntegrityError, StorageError) as error:
                # What comes from afar may have been lost or cut short on its way.
                if self.storage.is_local or attempt == _READS or "refuses" in error.what:
                    raise
                time.sleep(random.uniform(0, 0.1 * 2**attempt))
        raise AssertionError("unreachable")

    def _table(self, version: int | None = None) -> DeltaTable:
        if version is not None and not self.storage.exists(log_key(_FOLDER, version)):
            raise AtlasError(
                f"There is no snapshot {version}.", where=self.storage.url, fix="`cellmill atlas log` lists them."
            )
        try:
            return DeltaTable(self.uri, version=version, storage_options=self._options)
        except TableNotFoundError:
            raise AtlasError("The atlas has no catalog.", where=self.uri, fix="Check the path.") from None
        except DeltaError as error:
            raise IntegrityError(f"The catalog cannot be read: {first_line(error)}.", where=self.uri) from error
        except OSError as error:
            refused = "privileges" in str(error) or "authentication" in str(error)
            what = "The store refuses access." if refused else f"The catalog cannot be read: {first_line(error)}."
            raise StorageError(what, where=self.uri, fix="Check permissions and the network.") from error

    def _read(self, path: str) -> list[ShardEntry]:
        """Return the rows of one catalog file; these never change, so each is read once."""
        # Neither DeltaTable.to_pyarrow_table nor read_table: their threads can abort the interpreter when it ends.
        if path not in self._files:
            where = self.storage.join(f"{_FOLDER}/{path}")
            try:
                content = self.storage.get(f"{_FOLDER}/{path}")
            except SourceError as error:
                raise IntegrityError("A file of the catalog is missing.", where=where) from error
            if hashlib.sha256(content).hexdigest()[:32] != path[:32]:
                raise IntegrityError("A file of the catalog is damaged.", where=where)
            self._files[path] = from_table(pq.ParquetFile(BytesIO(content)).read(use_threads=False))
        return self._files[path]


def _paths(table: DeltaTable) -> list[str]:
    actions: Any = pa.table(table.get_add_actions(flatten=True))
    return sorted(actions.column("path").to_pylist())
