"""The commands ``cellmill datasets list | show | fetch``."""

from __future__ import annotations

from collections.abc import Callable

import typer
from rich.table import Table

from cellmill.console import console, emit
from cellmill.ingestion.datasets.entries import DatasetEntry, catalogue, find
from cellmill.ingestion.datasets.fetching import cached, fetch

app = typer.Typer(
    help="List and fetch public data sets: every one of scGPT's paper, and Baron's pancreas first.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

_JSON = typer.Option(False, "--json", help="Print one JSON object on standard output.")
_NAME = typer.Argument(help="The data set's name, as `cellmill datasets list` has it.")


@app.command("list")
def list_command(as_json: bool = _JSON) -> None:
    """Name every data set: cells, task, accession and how to get it."""
    entries = list(catalogue().values())
    payload = {"datasets": [{**entry.model_dump(mode="json"), "access": entry.access} for entry in entries]}
    emit(payload, as_json, _table_of(entries))


@app.command("show")
def show_command(name: str = _NAME, as_json: bool = _JSON) -> None:
    """Tell all that is known of one data set; unknown stays unknown."""
    entry = find(name)
    payload = {**entry.model_dump(mode="json"), "access": entry.access, "cached": _path(entry)}
    emit(payload, as_json, _details_of(entry))


@app.command("fetch")
def fetch_command(name: str = _NAME, as_json: bool = _JSON) -> None:
    """Fetch one data set into the cache, check it, and print where it lies."""
    entry = find(name)
    path = fetch(name)
    payload = {"name": name, "path": str(path), "bytes": path.stat().st_size, "licence": entry.licence}
    emit(payload, as_json, lambda: typer.echo(str(path)))


def _path(entry: DatasetEntry) -> str | None:
    path = cached(entry)
    return None if path is None else str(path)


def _table_of(entries: list[DatasetEntry]) -> Callable[[], None]:
    def render() -> None:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("name", "task", "cells", "accession", "licence", "get it by"):
            right, whole = column == "cells", column in ("name", "get it by")
            table.add_column(column, justify="right" if right else "left", overflow="fold", no_wrap=whole)
        for entry in entries:
            table.add_row(
                entry.name,
                ", ".join(entry.tasks),
                "?" if entry.cells is None else f"{entry.cells:,}",
                entry.accession or "?",
                entry.licence or "?",
                entry.access,
            )
        console.print(table)
        console.print("`cellmill datasets show NAME` tells more; ? is not known.")

    return render


def _details_of(entry: DatasetEntry) -> Callable[[], None]:
    def render() -> None:
        fields = {**entry.model_dump(mode="json", exclude={"file", "census"}), "cached": _path(entry) or "no"}
        if entry.census is not None:
            fields["value_filter"] = entry.census.value_filter
        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_column(style="bold")
        table.add_column(overflow="fold")
        for key, value in fields.items():
            if value != "":
                text = ", ".join(value) if isinstance(value, list) else "not known" if value is None else str(value)
                table.add_row(key, f"{value:,}" if isinstance(value, int) else text)
        console.print(table)

    return render
