"""Checkpoints: whole tensors written by all ranks, and a marker that says they are all there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cellmill.config import Config
from cellmill.errors import CheckpointError

MARKER = "complete.json"


class CheckpointConfig(Config):
    """When checkpoints are written and how many stay.

    Attributes
    ----------
    every_steps
        Steps between two checkpoints; None writes one at the end of each epoch.
    keep
        The newest ones that stay on disk.
    """

    every_steps: int | None = Field(None, ge=1)
    keep: int = Field(2, ge=1)


class Marker(Config):
    """What is written last: without it a checkpoint does not exist.

    Attributes
    ----------
    steps
        Optimizer steps taken.
    position
        Where the stream stood, as its own JSON.
    config
        The run's resolved configuration.
    plan
        What the run derived from its data and may not change (lanes, steps an epoch, vocabulary, classes).
    world_size
        Ranks that wrote it.
    files
        Name to size in bytes.
    skipped
        Cells that were left out so far because their shards are damaged, over all ranks, by shard.
    """

    format: int = 1
    steps: int
    position: dict[str, Any]
    config: dict[str, Any]
    plan: dict[str, Any]
    world_size: int
    files: dict[str, int]
    skipped: dict[str, int] = Field(default_factory=dict)


class Checkpoint:
    """One complete checkpoint on disk."""

    def __init__(self, path: Path, marker: Marker) -> None:
        self.path = path
        self.marker = marker

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read the marker and check that every file is there with its size.

        Raises
        ------
        CheckpointError
            The marker cannot be read, or a file is missing or cut.
        """
        fix = f"Delete {path} to resume from the checkpoint before it."
        try:
            marker = Marker.model_validate_json((path / MARKER).read_text())
        except (OSError, ValidationError) as error:
            raise CheckpointError("The checkpoint's marker cannot be read.", where=str(path), fix=fix) from error
        for name, size in marker.files.items():
            file = path / name
            if not file.exists() or file.stat().st_size != size:
                raise CheckpointError(f"The checkpoint's file {name} is missing or cut.", where=str(path), fix=fix)
        return cls(path, marker)

    def tensors(self) -> TensorFiles:
        """Return the tensors, each read from disk when it is asked for."""
        return TensorFiles(self.path / name for name in self.marker.files)


class TensorFiles(Mapping[str, Tensor]):
    """Tensors of several safetensors files as one mapping; use as a context manager."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._stack = ExitStack()
        self._handles: dict[str, Any] = {}
        for path in paths:
            try:
                handle = self._stack.enter_context(safe_open(path, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"The file cannot be read: {error}", where=str(path)) from error
            self._handles.update(dict.fromkeys(handle.keys(), handle))

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._handles:
            raise CheckpointError(
                f"The checkpoint has no tensor {name!r}.",
                where="checkpoint",
                fix="It was written by a model of another shape; start a new run.",
            )
        tensor: Tensor = self._handles[name].get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._handles)

    def __len__(self) -> int:
        return len(self._handles)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def newest(directory: Path) -> Checkpoint | None:
    """Return the complete checkpoint with the most steps, or None.

    Raises
    ------
    CheckpointError
        It was complete once and has lost or cut files since.
    """
    complete = sorted(path.parent for path in directory.glob(f"step-*/{MARKER}"))
    return Checkpoint.open(complete[-1]) if complete else None


def save(
    directory: Path,
    tensors: Iterable[tuple[str, Tensor]],
    *,
    steps: int,
    position: Mapping[str, Any],
    config: Mapping[str, Any],
    plan: Mapping[str, Any],
    skipped: Mapping[str, int],
    keep: int,
) -> Path:
    """Write a checkpoint from all ranks, then its marker, then forget old ones.

    Collective. Each rank writes the tensors whose turn it is, so that the work is shared and every tensor is
    written once. A crash at any point leaves either the checkpoint complete or a folder without a marker, which
    nobody reads.

    Parameters
    ----------
    directory
        The run's folder of checkpoints; all ranks see the same.
    tensors
        The same names in the same order on every rank.
    steps, position, config, plan, skipped
        See `Marker`.
    keep
        Complete checkpoints that stay, this one included.
    """
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    path = directory / f"step-{steps:08d}"
    if rank == 0:
        shutil.rmtree(path, ignore_errors=True)  # what a crash left here
        path.mkdir(parents=True)
    torch.distributed.barrier()
    mine = {name: tensor.cpu().contiguous() for i, (name, tensor) in enumerate(tensors) if i % world_size == rank}
    save_file(mine, path / f"state-{rank:05d}.safetensors")
    _sync(path / f"state-{rank:05d}.safetensors")
    torch.distributed.barrier()
    if rank == 0:
        marker = Marker(
            steps=steps,
            position=dict(position),
            config=dict(config),
            plan=dict(plan),
            world_size=world_size,
            files={file.name: file.stat().st_size for file in sorted(path.glob("*.safetensors"))},
            skipped=dict(skipped),
        )
        partial = path / f"{MARKER}.partial"
        partial.write_text(json.dumps(marker.model_dump(mode="json"), indent=1))
        _sync(partial)
        partial.rename(path / MARKER)
        _forget(directory, keep)
    torch.distributed.barrier()
    return path


def require_same(now: Mapping[str, Any], then: Mapping[str, Any], *, where: str, free: tuple[str, ...] = ()) -> None:
    """Refuse to resume under another configuration.

    Parameters
    ----------
    now, then
        Nested mappings: what is asked for, and what the checkpoint was written under.
    where
        The checkpoint.
    free
        Dotted prefixes that may differ, because they do not change what is computed.

    Raises
    ------
    CheckpointError
        Names the first key that differs.
    """
    new, old = dict(_flatten(now)), dict(_flatten(then))
    for key in sorted(new.keys() | old.keys()):
        if any(key == prefix or key.startswith(f"{prefix}.") for prefix in free):
            continue
        if new.get(key) != old.get(key):
            raise CheckpointError(
                f"{key} was {old.get(key)!r} when the run began and is {new.get(key)!r} now.",
                where=where,
                fix=f"Set {key} back to go on with this run, or start a new one under another `output`.",
            )


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _forget(directory: Path, keep: int) -> None:
    complete = sorted(path.parent for path in directory.glob(f"step-*/{MARKER}"))
    for path in complete[:-keep]:
        (path / MARKER).unlink()  # first, so that a half-deleted checkpoint is no checkpoint
        shutil.rmtree(path)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
