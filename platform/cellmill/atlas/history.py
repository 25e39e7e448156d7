"""The whole of the catalog's log: what made each snapshot, and which snapshots name which files."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Container
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from cellmill.atlas.delta_log import log_key, read_commit
from cellmill.atlas.entry import ShardEntry
from cellmill.atlas.forgotten import forgotten_versions
from cellmill.errors import IntegrityError, SourceError
from cellmill.storage import Storage

if TYPE_CHECKING:
    from cellmill.atlas.atlas import Atlas

Lifetime = list[tuple[int, int]]
"""Ranges of versions, the last of each not included."""

_CATALOG = "catalog"
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


def readable_shards(atlas: Atlas, newest: int) -> tuple[ShardEntry, ...]:
    """Return the shards of all snapshots that are not forgotten, each once.

    Raises
    ------
    IntegrityError
        A file of the log is missing or damaged.
    """
    forgotten = forgotten_versions(atlas.storage)
    lifetimes = catalog_lifetimes(atlas.storage, newest)
    paths = [path for path, lifetime in lifetimes.items() if is_retained(lifetime, forgotten)]
    found = {entry.key: entry for path in paths for entry in atlas.catalog_rows(path)}
    return tuple(found[key] for key in sorted(found))


def named_shards(atlas: Atlas) -> tuple[ShardEntry, ...]:
    """Return the shards of all snapshots whose lists are there, forgotten ones included, each once.

    Raises
    ------
    IntegrityError
        A file of the log is missing or damaged.
    """
    there = set(atlas.storage.list(_CATALOG))
    paths = catalog_lifetimes(atlas.storage, atlas.snapshot().version)
    found = {entry.key: entry for path in paths if f"{_CATALOG}/{path}" in there for entry in atlas.catalog_rows(path)}
    return tuple(found[key] for key in sorted(found))


def commit_infos(storage: Storage, newest: int) -> list[dict[str, Any]]:
    """Return what each commit says about itself, oldest first.

    Raises
    ------
    IntegrityError
        A file of the log is missing or damaged.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        logs = pool.map(lambda version: _lines(storage, version), range(newest + 1))
        return [next((line["commitInfo"] for line in lines if "commitInfo" in line), {}) for lines in logs]


def _actions(storage: Storage, version: int) -> tuple[list[str], list[str]]:
    lines = _lines(storage, version)
    removed = [unquote(line["remove"]["path"]) for line in lines if "remove" in line]
    return removed, [unquote(line["add"]["path"]) for line in lines if "add" in line]


def _lines(storage: Storage, version: int) -> list[dict[str, Any]]:
    key = log_key(_CATALOG, version)
    try:
        read_commit(storage, key)
        return [json.loads(line) for line in storage.get(key).splitlines() if line.strip()]
    except SourceError as error:
        raise IntegrityError(
            "A file of the catalog's log is missing.",
            where=storage.join(key),
            fix="Restore it from a copy of the atlas.",
        ) from error
