"""Small JSON records of an atlas (tags, withdrawals, forgotten snapshots), each with a checksum of its own."""

from __future__ import annotations

import hashlib
import json
from typing import Any, TypeVar

from pydantic import ValidationError

from cellmill.config import Config
from cellmill.errors import IntegrityError, SourceError
from cellmill.storage import Storage

R = TypeVar("R", bound=Config)

_CHECKSUM = "checksum"


def encode(record: Config) -> bytes:
    """Return a record as it is stored."""
    data = record.model_dump(mode="json")
    return json.dumps({**data, _CHECKSUM: _digest(data)}, indent=1).encode()


def read_record(storage: Storage, key: str, kind: type[R]) -> R | None:
    """Return a record, None if there is none.

    Raises
    ------
    IntegrityError
        It is damaged.
    """
    if not storage.exists(key):
        return None
    try:
        content = storage.get(key)
    except SourceError:
        if not storage.exists(key):
            return None  # deleted since
        raise
    try:
        data: Any = json.loads(content)
        checksum = data.pop(_CHECKSUM)
        record = kind.model_validate(data)
    except (ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
        raise _damaged(storage, key, "it is not what was written") from error
    # Written anew it must be the same to the byte: other bytes can mean the same.
    if checksum != _digest(data) or content != encode(record):
        raise _damaged(storage, key, "it does not have the checksum it was written with")
    return record


def read_records(storage: Storage, prefix: str, kind: type[R]) -> list[R]:
    """Return all records below a prefix whose names end in ``.json``, in order of their names."""
    found = (read_record(storage, key, kind) for key in storage.list(prefix) if key.endswith(".json"))
    return [record for record in found if record is not None]


def _digest(data: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _damaged(storage: Storage, key: str, what: str) -> IntegrityError:
    return IntegrityError(
        f"A record of the atlas is damaged: {what}.",
        where=storage.join(key),
        fix="Restore the file from a copy of the atlas.",
    )
