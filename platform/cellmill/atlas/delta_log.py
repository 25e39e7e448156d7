"""Commits of the catalog as files of a Delta log, each sealed by a checksum of its own.

Any reader of Delta tables reads them. A commit is one conditional write, so whose it is can be told even where the
answer was lost; and it names, by a digest, all files that the table has after it, so that a log of which something is
missing or changed never passes for another snapshot. It also says, for every withdrawal that was made so far, what its
record is and which file has the cells that it took.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from cellmill.errors import IntegrityError
from cellmill.seal import EMPTY_SEAL, is_sealed, seal
from cellmill.storage import Storage


class NewFile(NamedTuple):
    """A data file that a commit adds."""

    path: str
    size: int
    rows: int


class Noted(NamedTuple):
    """What a commit says of a withdrawal: sha256 of its record, and name of the file of the cells that it took."""

    record: str
    cells: str


class Commit(NamedTuple):
    """What a commit says of the table after it: digest of its files, and the withdrawals that were made."""

    files: str
    ledger: dict[int, Noted]


def log_key(folder: str, version: int) -> str:
    """Return where a commit is, relative to the atlas."""
    return f"{folder}/_delta_log/{version:020d}.json"


def encode_commit(
    add: Sequence[NewFile],
    remove: Iterable[str],
    *,
    files: Iterable[str],
    message: str,
    facts: dict[str, str],
    ledger: Mapping[int, Noted],
) -> bytes:
    """Return a commit as it is stored.

    Parameters
    ----------
    add, remove
        What it changes.
    files
        All data files that the table has after it.
    message, facts
        For the log.
    ledger
        Withdrawals that were made so far.
    """
    now = int(time.time() * 1000)
    info = {
        "timestamp": now,
        "operation": "WRITE",
        "operationParameters": {"mode": "Append", "partitionBy": "[]"},
        "engineInfo": "cellmill",
        "message": message,
        "facts": json.dumps(facts),
        "withdrawals": json.dumps(ledger, separators=(",", ":")),
        # Tells a commit from any other that does the same.
        "token": secrets.token_hex(8),
    }
    lines: list[dict[str, object]] = [{"commitInfo": info}]
    for path in sorted(remove):
        lines.append({"remove": {"path": path, "deletionTimestamp": now, "dataChange": True}})
    for file in add:
        about = {"path": file.path, "partitionValues": {}, "size": file.size, "modificationTime": now}
        stats = json.dumps({"numRecords": file.rows})
        lines.append({"add": {**about, "dataChange": True, "stats": stats}})
    return sealed("\n".join(json.dumps(line, separators=(",", ":")) for line in lines), files)


def sealed(text: str, files: Iterable[str]) -> bytes:
    """Return the lines of a commit with a digest of the table's files, and a checksum over all."""
    first, newline, rest = text.partition("\n")
    info = json.loads(first)
    info["commitInfo"] |= {"files": digest_of_files(files), "checksum": EMPTY_SEAL}
    return seal((json.dumps(info, separators=(",", ":")) + newline + rest).encode())


def digest_of_files(files: Iterable[str]) -> str:
    """Return what a commit says of all files of the table."""
    return hashlib.sha256("\n".join(sorted(files)).encode()).hexdigest()


def read_commit(storage: Storage, key: str) -> Commit:
    """Return what a commit says of the table.

    Raises
    ------
    SourceError
        There is no such commit.
    IntegrityError
        It is not what was written.
    """
    content = storage.get(key)
    try:
        if not is_sealed(content):
            raise ValueError("its bytes do not have the checksum they were written with")
        info = json.loads(content.partition(b"\n")[0])["commitInfo"]
        ledger = json.loads(info.get("withdrawals", "{}"))
        return Commit(str(info["files"]), {int(number): Noted(*noted) for number, noted in ledger.items()})
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(
            f"A commit of the catalog is damaged: {error}.",
            where=storage.join(key),
            fix="Restore the file from a copy of the atlas.",
        ) from error
