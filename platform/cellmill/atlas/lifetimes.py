"""Which snapshots name which files of the catalog, from the whole of the log."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Container
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import unquote

from cellmill.errors import IntegrityError, SourceError
from cellmill.storage import Storage

Lifetime = list[tuple[int, int]]
"""Ranges of versions, the last of each not included."""

_LOG = "catalog/_delta_log"
_THREADS = 16


def catalog_lifetimes(storage: Storage, newest: int) -> dict[str, Lifetime]:
    """Return the versions in which each file of the catalog counts, by its name.

    Parameters
    ----------
    storage
        The atlas's storage.
    newest
        Number of the newest snapshot.

    Raises
    ------
    IntegrityError
        A file of the log is missing or damaged.
    """
    begun: dict[str, int] = {}
    found: dict[str, Lifetime] = defaultdict(list)
    with ThreadPoolExecutor(_THREADS) as pool:
        logs = pool.map(lambda version: _actions(storage, version), range(newest + 1))
        for version, (removed, added) in enumerate(logs):
            for path in removed:
                if path in begun:
                    found[path].append((begun.pop(path), version))
            for path in added:
                begun.setdefault(path, version)
    for path, version in begun.items():
        found[path].append((version, newest + 1))
    return dict(found)


def is_retained(lifetime: Lifetime, forgotten: Container[int]) -> bool:
    """Return whether a snapshot that is not forgotten names the file."""
    return any(version not in forgotten for first, last in lifetime for version in range(first, last))


def _actions(storage: Storage, version: int) -> tuple[list[str], list[str]]:
    key = f"{_LOG}/{version:020d}.json"
    try:
        lines = [json.loads(line) for line in storage.get(key).splitlines() if line.strip()]
        removed = [unquote(line["remove"]["path"]) for line in lines if "remove" in line]
        return removed, [unquote(line["add"]["path"]) for line in lines if "add" in line]
    except (SourceError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(
            "A file of the catalog's log is missing or damaged.",
            where=storage.join(key),
            fix="Restore it from a copy of the atlas.",
        ) from error
