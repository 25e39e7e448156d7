"""The catalog: a Delta table with one row per shard, whose version is the snapshot's number."""

from __future__ import annotations

import json
import random
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, PostCommitHookProperties, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction

from cellmill.atlas.entry import SCHEMA, ShardEntry, from_table, to_table
from cellmill.config import Config
from cellmill.errors import AtlasError, ConflictError, IntegrityError
from cellmill.storage import Storage

_FOLDER = "catalog"
_ATTEMPTS = 60
_FIRST_PAUSE_S = 0.01
_LONGEST_PAUSE_S = 1.0


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
    """

    add: Sequence[ShardEntry] = ()
    remove: Sequence[tuple[str, str]] = ()
    message: str = ""
    facts: dict[str, str] = field(default_factory=dict)


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
        first = "_delta_log/00000000000000000000.json"
        if self.storage.exists(f"{_FOLDER}/{first}"):
            return
        with TemporaryDirectory() as aside:
            DeltaTable.create(
                aside,
                SCHEMA,
                name="cellmill catalog",
                # By default Delta forgets versions after 30 days; a snapshot must stay readable until it is purged.
                configuration={"delta.enableExpiredLogCleanup": "false"},
            )
            self.storage.put_if_absent(f"{_FOLDER}/{first}", (Path(aside) / first).read_bytes())

    def version(self) -> int:
        """Return the number of the newest snapshot."""
        return int(self._table().version())

    def entries(self, version: int | None = None) -> tuple[int, tuple[ShardEntry, ...]]:
        """Return a snapshot's number and its rows, sorted by data set and digest.

        Raises
        ------
        AtlasError
            There is no such snapshot.
        IntegrityError
            A file of the catalog is missing or unreadable.
        """
        table = self._table(version)
        rows = [entry for path in _paths(table) for entry in self._read(path)]
        return int(table.version()), tuple(sorted(rows, key=lambda entry: entry.key))

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
            table = self._table()
            base = int(table.version())
            files = {path: self._read(path) for path in _paths(table)}
            rows = tuple(sorted((row for found in files.values() for row in found), key=lambda row: row.key))
            change = plan(base, rows)
            if change is None:
                return base, False
            if self._write(table, base, files, change):
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

    def log(self) -> list[LogEntry]:
        """Return what made each snapshot, newest first."""
        lines = []
        for item in self._table().history():
            stamp = time.gmtime(int(item["timestamp"]) / 1000)
            facts = json.loads(item.get("facts", "{}"))
            message = item.get("message") or ("created" if item["version"] == 0 else str(item.get("operation", "")))
            lines.append(
                LogEntry(
                    version=item["version"],
                    time=time.strftime("%Y-%m-%dT%H:%M:%SZ", stamp),
                    message=message,
                    facts=facts,
                )
            )
        return lines

    def _write(self, table: DeltaTable, base: int, files: dict[str, list[ShardEntry]], change: Change) -> bool:
        """Try the commit once: rows that stay are copied from the files that lose some."""
        gone = {*change.remove, *(entry.key for entry in change.add)}
        touched = [path for path, rows in files.items() if any(row.key in gone for row in rows)]
        stay = [row for path in touched for row in files[path] if row.key not in gone]
        actions: list[AddAction | RemoveAction] = [RemoveAction(path, True, _now_ms()) for path in touched]
        rows = sorted([*stay, *change.add], key=lambda row: row.key)
        path = f"{uuid.uuid4().hex}.parquet"
        if rows:
            sink = BytesIO()
            pq.write_table(to_table(rows), sink, compression="zstd")
            self.storage.put(f"{_FOLDER}/{path}", sink.getvalue())
            stats = json.dumps({"numRecords": len(rows)})
            actions.append(AddAction(path, sink.tell(), {}, _now_ms(), True, stats))
        try:
            table.create_write_transaction(
                actions,
                mode="append",
                schema=SCHEMA,
                # Appends never conflict in Delta: the transaction number of the base makes one of two writers lose.
                commit_properties=CommitProperties(
                    custom_metadata={"message": change.message, "facts": json.dumps(change.facts)},
                    app_transactions=[Transaction("atlas", base + 1)],
                ),
                post_commithook_properties=PostCommitHookProperties(cleanup_expired_logs=False),
            )
        except CommitFailedError:
            if rows:
                self.storage.delete(f"{_FOLDER}/{path}")
            return False
        return True

    def _table(self, version: int | None = None) -> DeltaTable:
        try:
            return DeltaTable(self.uri, version=version, storage_options=self._options)
        except TableNotFoundError:
            raise AtlasError("The atlas has no catalog.", where=self.uri, fix="Check the path.") from None
        except DeltaError as error:
            if version is None:
                raise IntegrityError(f"The catalog cannot be read: {error}.", where=self.uri) from error
            raise AtlasError(
                f"There is no snapshot {version}.", where=self.storage.url, fix="`cellmill atlas log` lists them."
            ) from error

    def _read(self, path: str) -> list[ShardEntry]:
        """Return the rows of one catalog file; these never change, so each is read once."""
        # Not DeltaTable.to_pyarrow_table: its threads can abort the interpreter when it ends.
        if path not in self._files:
            try:
                table = pq.read_table(BytesIO(self.storage.get(f"{_FOLDER}/{path}")), use_threads=False)
            except (pa.ArrowException, OSError) as error:
                where = self.storage.join(f"{_FOLDER}/{path}")
                raise IntegrityError(f"A file of the catalog is damaged: {error}.", where=where) from error
            self._files[path] = from_table(table)
        return self._files[path]


def _paths(table: DeltaTable) -> list[str]:
    actions: Any = pa.table(table.get_add_actions(flatten=True))
    return sorted(actions.column("path").to_pylist())


def _now_ms() -> int:
    return int(time.time() * 1000)
