"""Finding model folders by name or digest."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cellmill.errors import CellmillError, ModelError
from cellmill.models.manifest import FILE, FORMAT, Task, read_manifest

_LEAST_PREFIX = 6


@dataclass(frozen=True)
class ModelEntry:
    """A model folder that was found; its files are not verified before it is loaded."""

    path: Path
    name: str
    task: Task
    digest: str


def find_models(root: Path | str) -> list[ModelEntry]:
    """Return the model folders below `root` in order of their path; damaged and foreign ones are passed over."""
    return sorted(_search(Path(root)), key=lambda entry: entry.path)


def find_model(root: Path | str, reference: str) -> ModelEntry:
    """Return the one model below `root` with this name, or with a digest that begins so.

    Copies of one model count as one.

    Raises
    ------
    ModelError
        There is none, or several different ones.
    """
    models = find_models(root)
    found = [entry for entry in models if entry.name == reference]
    if not found and len(reference) >= _LEAST_PREFIX:
        found = [entry for entry in models if entry.digest.startswith(reference)]
    different = {entry.digest: entry for entry in reversed(found)}
    if len(different) == 1:
        return found[0]
    if different:
        raise ModelError(
            f"{reference!r} is the name of several models: {_listing(different.values())}.",
            where=str(root),
            fix="Use a digest.",
        )
    known = f"There are: {_listing(models)}." if models else ""
    raise ModelError(f"No model is called {reference!r}.", where=str(root), fix=known)


def _listing(entries: Iterable[ModelEntry]) -> str:
    return ", ".join(f"{entry.name} ({entry.digest[:12]})" for entry in entries)


def _search(root: Path) -> Iterator[ModelEntry]:
    for folder, below, files in os.walk(root):
        # A zarr store may hold a million files and never a model; hidden folders hold drafts and environments.
        below[:] = [name for name in below if not name.startswith(".") and not name.endswith(".zarr")]
        if FILE not in files or FORMAT.encode() not in _head(Path(folder) / FILE):
            continue
        try:
            manifest, digest = read_manifest(Path(folder))
        except CellmillError:
            continue
        yield ModelEntry(path=Path(folder), name=manifest.name, task=manifest.task, digest=digest)


def _head(path: Path) -> bytes:
    """Return the bytes of a file that is small enough to be a manifest."""
    try:
        return path.read_bytes() if path.stat().st_size < 1 << 20 else b""
    except OSError:
        return b""
