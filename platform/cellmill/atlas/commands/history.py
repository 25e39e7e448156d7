"""The snapshots of an atlas: log, tag, rollback."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from cellmill.atlas.atlas import Atlas
from cellmill.atlas.commands.options import DryRun, Json, Version, Where_
from cellmill.atlas.tags import add_tag, all_tags, delete_tag
from cellmill.console import console, emit
from cellmill.errors import ConfigError

Message = Annotated[str, typer.Option("--message", "-m", help="For the log.")]


def log(
    atlas: Where_,
    limit: Annotated[int | None, typer.Option("--limit", "-n", help="Print so many of the newest.", min=1)] = None,
    as_json: Json = False,
) -> None:
    """List the snapshots, newest first, with their tags."""
    lines = Atlas.open(atlas).log()[:limit]

    def render() -> None:
        table = Table("snapshot", "time", "what", "tags", box=None)
        for line in lines:
            style = "dim" if line.forgotten else None
            what = f"{line.message} (forgotten)" if line.forgotten else line.message
            table.add_row(str(line.version), line.time, what, ", ".join(line.tags), style=style)
        console.print(table)

    emit({"log": [line.model_dump(mode="json") for line in lines]}, as_json, render)


def tag(
    atlas: Where_,
    name: Annotated[str | None, typer.Argument(help="The tag; without one all are listed.")] = None,
    version: Version = None,
    message: Message = "",
    delete: Annotated[bool, typer.Option("--delete", help="Take the tag away.")] = False,
    as_json: Json = False,
) -> None:
    """Give a snapshot a name, by which every command takes it, and which keeps it from being forgotten."""
    opened = Atlas.open(atlas)
    if name is None:
        if delete or version is not None:
            raise ConfigError("Which tag?", where="tag", fix="Give its name.")
        tags = all_tags(opened.storage)

        def render() -> None:
            table = Table("tag", "snapshot", "time", "why", box=None)
            for found in tags:
                table.add_row(found.name, str(found.version), found.time, found.message)
            console.print(table)

        emit({"tags": [found.model_dump(mode="json") for found in tags]}, as_json, render)
        return
    done = delete_tag(opened.storage, name) if delete else add_tag(opened, name, version, message)
    said = (
        f"Tag {done.name} of snapshot {done.version} is gone." if delete else f"Snapshot {done.version} is {done.name}."
    )
    emit({"tag": done.model_dump(mode="json"), "deleted": delete}, as_json, lambda: console.print(said))


def rollback(
    atlas: Where_,
    version: Annotated[str, typer.Argument(help="Number or tag of the snapshot to go back to.")],
    message: Message = "",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Make a new snapshot with the cells of an old one; nothing is lost, so a rollback can be rolled back."""
    from cellmill.atlas.comparing import compare
    from cellmill.atlas.rollback import rollback as roll

    opened = Atlas.open(atlas)
    target = opened.snapshot(version)
    changes = compare(opened.snapshot(), target)
    number, made = (changes.before, False) if dry_run else roll(opened, version, message)

    def render() -> None:
        if not changes.datasets:
            console.print(f"Nothing to do: snapshot {changes.before} has the cells of snapshot {target.version}.")
            return
        for name, change in changes.datasets.items():
            console.print(f"  {name}: {change.cells_before:,} cells become {change.cells_after:,}")
        done = f"Snapshot {number} has" if made else "A new snapshot would have"
        console.print(f"{done} the {target.n_cells:,} cells of snapshot {target.version}.")

    payload = {"snapshot": number, "changed": made, "target": target.version, "dry_run": dry_run}
    emit({**payload, "changes": changes.model_dump(mode="json")}, as_json, render)
