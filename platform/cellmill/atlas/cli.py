"""`cellmill atlas`: look into an atlas, read it out, compare, and keep it in order."""

from __future__ import annotations

import typer

from cellmill.atlas.commands import care, compacting, comparing, content, exporting, history

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Look into an atlas: log, show, query, read, diff, leakage; hand it on: export; "
    "keep it: tag, rollback, remove, compact, gc, verify.",
)

for command in (
    history.log,
    content.show,
    content.query,
    content.read,
    exporting.export,
    comparing.diff,
    comparing.leakage,
    history.tag,
    history.rollback,
    care.remove,
    compacting.compact,
    care.gc,
    care.verify,
):
    app.command()(command)
