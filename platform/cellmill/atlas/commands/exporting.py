"""A snapshot for readers of other formats: export."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from cellmill.atlas.atlas import Atlas
from cellmill.atlas.commands.options import Json, Version, Where_
from cellmill.atlas.exporting import export_arrow
from cellmill.console import console, emit, progress


class Format(StrEnum):
    """Formats that a snapshot can be exported to."""

    arrow = "arrow"


def export(
    atlas: Where_,
    out: Annotated[str, typer.Argument(metavar="OUT", help="Path or URL of the new atlas.")],
    format_: Annotated[Format, typer.Option("--format", "-f", help="How the counts lie in it.")] = Format.arrow,
    version: Version = None,
    as_json: Json = False,
) -> None:
    """Write a snapshot as an atlas of Arrow files, streamed as this one and read by all that reads Arrow."""
    snapshot = Atlas.open(atlas).snapshot(version)
    with progress(snapshot.n_cells, "exporting", "cells") as advance:
        found = export_arrow(snapshot, out, progress=advance)

    def render() -> None:
        console.print(
            f"{found.atlas}  snapshot {found.snapshot}: {found.cells:,} cells in {found.shards} {format_.value} files, "
            f"{found.bytes / 1e6:,.1f} MB"
        )

    emit({**found.model_dump(mode="json"), "format": format_.value}, as_json, render)
