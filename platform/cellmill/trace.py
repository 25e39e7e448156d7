"""`cellmill lineage`: find what a person points at, and walk back to the source files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from cellmill.console import console, emit
from cellmill.errors import CellmillError, ConfigError, ModelError, SourceError
from cellmill.forward import forward
from cellmill.lineage import Lineage, read_lineage
from cellmill.stamps import read_stamp

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
    stamp = read_stamp(path, fix=_FIX)
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


def lineage(
    thing: Annotated[str, typer.Argument(help="Model folder, run, atlas[@version], answer (JSON or h5ad) or digest.")],
    root: Annotated[Path, typer.Option(help="Where to search for models, by digest or all.")] = Path(),
    ahead: Annotated[
        bool,
        typer.Option(
            "--forward",
            help="Walk the other way: from a data set, a source file or its digest, ATLAS@SNAPSHOT, ATLAS#WITHDRAWAL, "
            "or ATLAS with --where, to the runs, models and answers that saw it.",
        ),
    ] = False,
    where: Annotated[
        str | None, typer.Option("--where", "-w", help="With --forward: which cells of the atlas.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Walk from a prediction, a model, a run or a snapshot back to the source files and their licences."""
    if ahead:
        _forward(thing, root, where, as_json)
        return
    if where is not None:
        raise ConfigError("--where chooses cells for the walk forward.", where="lineage", fix="Add --forward.")
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


def _forward(thing: str, root: Path, where: str | None, as_json: bool) -> None:
    found = forward(thing, root, where)

    def render() -> None:
        console.print(f"Who saw {found.what}, below {root.absolute()}", soft_wrap=True)
        for saw, style in (("yes", "red"), ("unknown", "yellow"), ("no", "green")):
            for one in found.those(saw):  # type: ignore[arg-type]
                n = f" {one.cells:,} cells" if one.cells is not None else ""
                head = (saw, style), f"{n}  ", (one.kind, "bold"), f" {one.name} ", (one.location, "dim")
                console.print(Text.assemble(*head, f"\n  {one.why}"), soft_wrap=True)
        if not found.found:
            console.print("There is no model, run or answer.")

    emit({"forward": found.model_dump(mode="json")}, as_json, render)
