"""Writing a model folder: all of it, or nothing."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import numpy.typing as npt

from cellmill.errors import ConfigError, ModelError
from cellmill.genes import Vocabulary
from cellmill.lineage import Lineage
from cellmill.models.card import write_card
from cellmill.models.folder import ModelFolder, load_model
from cellmill.models.manifest import CONTENT, FILE, FORMAT, VERSION, Manifest, Task, describe

if TYPE_CHECKING:
    import torch


def save_model(
    path: Path | str,
    *,
    name: str,
    task: Task,
    config: Mapping[str, Any],
    weights: Mapping[str, torch.Tensor | npt.NDArray[Any]],
    vocabulary: Vocabulary,
    preprocessing: Mapping[str, Any],
    labels: Mapping[str, Any],
    metrics: Mapping[str, Any],
    lineage: Lineage,
    description: str = "",
    licence: str = "",
) -> ModelFolder:
    """Write a model folder and return it as read back.

    The folder is written beside `path` under another name, synced, and renamed, so that `path` holds a whole model or
    nothing. Equal content gives an equal digest.

    Parameters
    ----------
    path
        The folder to make; it must not exist.
    name
        What to call the model.
    task
        ``embed`` or ``annotate``.
    config, preprocessing, labels
        As in `ModelFolder`; JSON values only.
    weights
        Tensors or arrays by parameter name.
    vocabulary
        Token ids of features.
    metrics
        Numbers by name, or by method and name; one that is not finite is written as null.
    lineage
        What the model was made from: the run, with the snapshot and the source files below it.
    description, licence
        For the card: a sentence on what the model is for, and an SPDX licence id.

    Raises
    ------
    ConfigError
        `path` exists.
    ModelError
        The task is not known, there are no weights, or something is not JSON.
    """
    target = Path(path).expanduser().absolute()
    if target.exists():
        raise ConfigError("A model folder is never overwritten.", where=str(target), fix="Choose another path.")
    if task not in get_args(Task):
        raise ModelError(f"{task!r} is not a task.", where="task", fix=f"Use one of: {', '.join(get_args(Task))}.")
    if not weights:
        raise ModelError("A model without weights cannot be saved.", where=str(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        draft.chmod(0o755)
        documents = {"config": config, "preprocessing": preprocessing, "labels": labels, "metrics": _finite(metrics)}
        for stem, document in documents.items():
            (draft / f"{stem}.json").write_bytes(_to_json(document, stem))
        _write_weights(draft / "model.safetensors", weights)
        (draft / "vocabulary.parquet").write_bytes(vocabulary.to_parquet())
        lineage.save(draft / "lineage.json")
        n_weights = sum(math.prod(tensor.shape) for tensor in weights.values())
        card = write_card(
            name=name,
            task=task,
            description=description,
            licence=licence,
            n_weights=n_weights,
            n_features=len(vocabulary.features),
            preprocessing=preprocessing,
            labels=labels,
            metrics=documents["metrics"],
            lineage=lineage,
        )
        (draft / "README.md").write_text(card, encoding="utf-8")
        files = {file: describe(draft / file) for file in CONTENT}
        manifest = Manifest(format=FORMAT, version=VERSION, name=name, task=task, files=files)
        (draft / FILE).write_bytes(manifest.to_bytes())
        _publish(draft, target)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return load_model(target)


def _write_weights(path: Path, weights: Mapping[str, torch.Tensor | npt.NDArray[Any]]) -> None:
    import torch
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {}
    for name, value in weights.items():
        tensor = torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value.detach().cpu()
        # Tied weights share memory, which the format refuses: each name gets bytes of its own.
        tensors[name] = tensor.clone(memory_format=torch.contiguous_format)
    save_file(tensors, path, metadata={"format": "pt"})


def _publish(draft: Path, target: Path) -> None:
    for path in draft.iterdir():
        _sync(path)
    _sync(draft)
    try:
        os.rename(draft, target)
    except OSError as error:
        raise ConfigError(
            "Another process wrote a folder here meanwhile.", where=str(target), fix="Choose another path."
        ) from error
    _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _to_json(document: Mapping[str, Any], stem: str) -> bytes:
    try:
        text = json.dumps(document, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise ModelError(f"The model's {stem} cannot be written as JSON: {error}.", where=stem) from error
    return (text + "\n").encode()


def _finite(value: Any) -> Any:
    """Return metrics with null where a number is not finite (a score of a class that was never seen)."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
