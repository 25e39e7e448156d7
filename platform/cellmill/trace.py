"""`cellmill lineage`: find what a person points at, and walk back to the source files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from cellmill.console import console, emit
from cellmill.errors import CellmillError, ModelError, SourceError
from cellmill.lineage import Lineage, read_lineage

_FIX = "Give a model folder, a run, an atlas (ATLAS or ATLAS@VERSION), an answer (JSON or h5ad) or a model's digest."


def trace(thing: str, root: Path) -> Lineage:
    """Return the lineage of whatever `thing` names.

    Parameters
    ----------
    thing
        A model folder, a run directory, an atlas (``URL``, or ``URL@VERSION`` with a number or a tag), an h5ad that
        Cellmill annotated or embedded, a saved JSON answer of the server, or the (beginning of the) digest of a model.
    root
        Folder below which a model is searched by its digest.

    Raises
    ------
    SourceError
        It is none of these.
    """
    path = Path(thing)
    if path.is_dir():
        if (path / "manifest.json").exists():
            return _model(path)
        if (path / "lineage.json").exists():
            return read_lineage(path / "lineage.json")
    if path.is_file():
        return _answer(path, root)
    url, _, version = thing.partition("@") if "://" not in thing else thing.rpartition("@")
    if (Path(url) / "atlas.json").exists() or "://" in url:
        return _atlas(url, version)
    return _by_digest(thing, root, what=f"Nothing is known as {thing!r}.")


def _model(path: Path) -> Lineage:
    from cellmill.models import load_model

    return load_model(path).lineage_node()


def _atlas(url: str, version: str) -> Lineage:
    from cellmill.atlas import Atlas

    return Atlas.open(url).snapshot(version or None).lineage()


def _by_digest(digest: str, root: Path, *, what: str) -> Lineage:
    from cellmill.models import find_model

    try:
        found = find_model(root, digest)
    except ModelError as error:
        where = f"searched below {root.absolute()}"
        raise SourceError(what, where=where, fix=f"{error.what} {_FIX} --root widens the search.") from error
    return _model(found.path)


def _answer(path: Path, root: Path) -> Lineage:
    stamp = _read_stamp(path)
    digest = str(stamp.get("model_digest", ""))
    if not digest:
        raise SourceError("The file carries no model digest.", where=str(path), fix=_FIX)
    model = _by_digest(digest, root, what=f"The model {digest[:16]}… that gave this answer was not found.")
    return Lineage(
        kind="prediction",
        name=path.name,
        digest=digest,
        location=str(path.absolute()),
        facts={"task": str(stamp.get("task", "")), "cells": stamp.get("n_cells")},
        parents=(model,),
    )


def _read_stamp(path: Path) -> dict[str, Any]:
    if path.suffix == ".json":
        try:
            data = json.loads(path.read_text())
        except ValueError as error:
            raise SourceError(f"The file is not valid JSON: {error}", where=str(path)) from error
        return data if isinstance(data, dict) else {}
    import h5py

    try:
        with h5py.File(path, "r") as file:
            group = file.get("uns/cellmill")
            if group is None:
                return {}
            return {key: _scalar(group[key][()]) for key in group}
    except OSError as error:
        raise SourceError("The file is neither JSON nor h5ad.", where=str(path), fix=_FIX) from error


def _scalar(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else value


def lineage(
    thing: Annotated[str, typer.Argument(help="Model folder, run, atlas[@version], answer (JSON or h5ad) or digest.")],
    root: Annotated[Path, typer.Option(help="Where to search for a model by its digest.")] = Path(),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Walk from a prediction, a model, a run or a snapshot back to the source files and their licences."""
    found = trace(thing, root)
    sources = found.sources()

    def render() -> None:
        console.print(found.tree())
        console.print(f"{len(sources)} source file{'s' if len(sources) != 1 else ''} at the end of the walk.")

    emit(
        {"lineage": found.model_dump(mode="json"), "sources": [s.model_dump(mode="json") for s in sources]},
        as_json,
        render,
    )
    if not sources:
        raise CellmillError("The walk does not reach a source file.", where=thing, fix="Was it made by an older run?")
