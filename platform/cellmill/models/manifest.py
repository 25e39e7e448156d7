"""The manifest of a model folder: format, identity, and the checksum of every other file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from cellmill.config import Config
from cellmill.errors import IntegrityError, ModelError

FILE = "manifest.json"
FORMAT = "cellmill-model"
VERSION = 1
CONTENT = (
    "config.json",
    "labels.json",
    "lineage.json",
    "metrics.json",
    "model.safetensors",
    "preprocessing.json",
    "README.md",
    "vocabulary.parquet",
)
"""Files that every model folder has beside its manifest."""

Task = Literal["embed", "annotate"]
"""What a model is for; one made to annotate can also embed."""

_BLOCK = 1 << 22
_FIX = "Copy the folder again from where it was written; do not edit files inside it."


class FileEntry(Config):
    """One file: sha256 in hexadecimal and size in bytes."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size: int = Field(ge=0)


class Manifest(Config):
    """What ``manifest.json`` holds. Its own sha256 is the digest of the model."""

    format: Literal["cellmill-model"]
    version: int
    name: str
    task: Task
    files: dict[str, FileEntry]

    def to_bytes(self) -> bytes:
        """Return the bytes of ``manifest.json``; equal content gives equal bytes."""
        return (json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True) + "\n").encode()


def describe(path: Path) -> FileEntry:
    """Return checksum and size of a file, read in blocks."""
    state = hashlib.sha256()
    size = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            state.update(block)
            size += len(block)
    return FileEntry(sha256=state.hexdigest(), size=size)


def read_manifest(folder: Path) -> tuple[Manifest, str]:
    """Return the manifest of a model folder and its digest, without looking at the other files.

    Raises
    ------
    ModelError
        There is no model folder, or it is of a format version that is not known.
    IntegrityError
        The manifest is damaged.
    """
    path = folder / FILE
    try:
        raw = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise ModelError(
            "This is not a model folder: it has no manifest.json.",
            where=str(folder),
            fix="Give the folder that training wrote (<output>/model).",
        ) from None
    try:
        data = json.loads(raw)
    except ValueError as error:
        raise IntegrityError(f"The manifest is not valid JSON: {error}", where=str(path), fix=_FIX) from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ModelError("The manifest is not that of a Cellmill model.", where=str(path))
    if data.get("version") != VERSION:
        raise ModelError(
            f"The model folder has format version {data.get('version')!r}; this Cellmill reads version {VERSION}.",
            where=str(path),
            fix="Use the release of Cellmill that wrote it, or train again.",
        )
    try:
        manifest = Manifest.model_validate(data)
    except ValidationError as error:
        raise IntegrityError(
            f"The manifest is damaged: {error.errors()[0]['msg']}", where=str(path), fix=_FIX
        ) from error
    _check_names(manifest.files, path)
    return manifest, hashlib.sha256(raw).hexdigest()


def verify(folder: Path, manifest: Manifest) -> None:
    """Hold every file of a model folder against its manifest.

    Raises
    ------
    IntegrityError
        A file is missing, changed, or not listed; the message names it.
    """
    present = {path.name for path in folder.iterdir()} - {FILE}
    for name in sorted(present - set(manifest.files)):
        raise IntegrityError(
            "The model folder holds a file that its manifest does not list.",
            where=str(folder / name),
            fix="Move it out of the folder.",
        )
    for name, expected in sorted(manifest.files.items()):
        path = folder / name
        if not path.is_file():
            raise IntegrityError("A file of the model is missing.", where=str(path), fix=_FIX)
        if path.stat().st_size != expected.size or describe(path) != expected:
            raise IntegrityError("A file of the model is not the one that was written.", where=str(path), fix=_FIX)


def _check_names(files: Mapping[str, FileEntry], path: Path) -> None:
    for name in files:
        if name != Path(name).name or name in ("", ".", "..", FILE):
            raise IntegrityError(f"The manifest lists {name!r}, which is no file name.", where=str(path), fix=_FIX)
    missing = sorted(set(CONTENT) - set(files))
    if missing:
        raise ModelError(f"The model is incomplete: its manifest does not list {', '.join(missing)}.", where=str(path))
