"""The files of an atlas with their sizes and times, and what belongs together."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cellmill.storage import Storage
from cellmill.store_errors import patiently

_DRAFT = re.compile(r"\.partial$|#\d+$|/_delta_log/_commit_[^/]*\.tmp$")
"""Files that were being written, by us and by Delta, when their writer was killed."""

_OF_CELLS = re.compile(r"(shards|cells|staging|hashes|overlays)/|catalog/[^/]*$")
"""Files that tell something of cells; nobody writes them without a lease."""


@dataclass(frozen=True)
class File:
    """A file: its key, bytes, and time of change in seconds since 1970."""

    key: str
    size: int
    modified: float


@dataclass
class Unit:
    """Files that are needed or not needed together.

    Attributes
    ----------
    kind
        ``shards``, ``overlays``, ``hashes``, ``staging``, ``reports``, ``catalog``, ``withdrawals`` or ``drafts``.
    name
        Of a shard ``<dataset>/<digest>``, of staged blocks their folder, else the key of the one file.
    files
        The files.
    """

    kind: str
    name: str
    files: list[File] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(file.size for file in self.files)

    @property
    def modified(self) -> float:
        """When the newest of the files was written."""
        return max(file.modified for file in self.files)

    @property
    def may_hold_cells(self) -> bool:
        """Whether it holds cells, or values of theirs."""
        return self.kind == "reports" or _OF_CELLS.match(self.files[0].key) is not None

    def delete(self, storage: Storage) -> None:
        """Delete all files; of a shard first the one that says it is complete."""
        if self.kind == "shards":
            storage.delete(f"cells/{self.name}.parquet")
            storage.delete_tree(f"shards/{self.name}.zarr")
            for layout in ("arrow", "anndata"):
                storage.delete(f"shards/{self.name}.{layout}")
        elif self.kind == "staging":
            storage.delete_tree(self.name)
        elif self.kind == "drafts" and storage.is_local:
            for file in self.files:  # the store does not speak of its own drafts
                storage.local_path(file.key).unlink(missing_ok=True)
        else:
            for file in self.files:
                storage.delete(file.key)


def list_units(storage: Storage) -> list[Unit]:
    """Return everything that a collection may have to look at."""
    found: dict[tuple[str, str], Unit] = {}
    for file in list_files(storage, ""):
        kind, name = _unit_of(file.key)
        if kind:
            found.setdefault((kind, name), Unit(kind, name)).files.append(file)
    return list(found.values())


def list_files(storage: Storage, prefix: str) -> Iterator[File]:
    """Yield all files below a prefix, half-written ones on a local disk included."""
    if not storage.is_local:
        # Listed as a whole before anything is looked at: a list that breaks off is asked for again.
        pages = patiently(lambda: list(storage.store.list(prefix or None)), storage.join(prefix))
        for item in itertools.chain.from_iterable(pages):
            yield File(item["path"], int(item["size"]), item["last_modified"].timestamp())
        return
    root = storage.local_path()
    for folder, _, names in os.walk(root / prefix):
        for name in names:
            path = Path(folder) / name
            try:
                status = path.stat()
            except FileNotFoundError:
                continue  # deleted since
            yield File(path.relative_to(root).as_posix(), status.st_size, status.st_mtime)


def _unit_of(key: str) -> tuple[str, str]:
    parts = key.split("/")
    if _DRAFT.search(key):
        return "drafts", key
    match parts:
        case ["shards", dataset, shard, *_] if shard.endswith((".zarr", ".arrow", ".anndata")):
            return "shards", f"{dataset}/{shard.rpartition('.')[0]}"
        case ["cells", dataset, shard] if shard.endswith(".parquet"):
            return "shards", f"{dataset}/{shard.removesuffix('.parquet')}"
        case ["staging", folder, *_]:
            return "staging", f"staging/{folder}"
        case ["overlays", _, _] | ["hashes", _]:
            return parts[0], key
        case ["reports", "datasets", _, _]:
            return "reports", key
        case ["withdrawals", _, name] if name.endswith(".parquet"):
            return "withdrawals", key
        case ["catalog", name] if name.endswith(".parquet"):
            return "catalog", key
    return "", ""
