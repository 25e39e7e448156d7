"""`cellmill atlas`: look into an atlas, query its cells, verify it, read it out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from cellmill.atlas.atlas import Atlas
from cellmill.console import console, emit, progress
from cellmill.errors import ConfigError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Look into an atlas: log, show, query, verify, read.",
)
Where_ = Annotated[str, typer.Argument(metavar="ATLAS", help="Path or URL of the atlas.")]
Version = Annotated[int | None, typer.Option("--version", "-v", help="Snapshot; the newest by default.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Predicate = Annotated[
    str | None, typer.Option("--where", "-w", help="Predicate, such as \"donor != 'human4' and n_genes >= 500\".")
]


@app.command()
def log(atlas: Where_, as_json: Json = False) -> None:
    """List the snapshots, newest first."""
    lines = Atlas.open(atlas).log()

    def render() -> None:
        table = Table("snapshot", "time", "what", box=None)
        for line in lines:
            table.add_row(str(line.version), line.time, line.message)
        console.print(table)

    emit({"log": [line.model_dump(mode="json") for line in lines]}, as_json, render)


@app.command()
def show(atlas: Where_, version: Version = None, as_json: Json = False) -> None:
    """Show what a snapshot holds: data sets, cells, licences, columns."""
    opened = Atlas.open(atlas)
    snapshot = opened.snapshot(version)
    datasets: dict[str, dict[str, Any]] = {}
    for entry in snapshot.shards:
        row = datasets.setdefault(
            entry.dataset,
            {"cells": 0, "shards": 0, "bytes": 0, "organism": entry.organism, "licence": entry.licence, "sources": []},
        )
        row["cells"] += entry.n_cells
        row["shards"] += 1
        row["bytes"] += entry.bytes
        source = {"url": entry.source_url, "sha256": entry.source_sha256}
        if source not in row["sources"]:
            row["sources"].append(source)
    payload = {
        "atlas": opened.url,
        "id": opened.id,
        "snapshot": snapshot.version,
        "cells": snapshot.n_cells,
        "features": len(opened.vocabulary().features),
        "datasets": datasets,
        "columns": {name: str(kind) for name, kind in snapshot.columns.items()},
    }

    def render() -> None:
        console.print(
            f"[bold]{opened.url}[/bold]  snapshot {snapshot.version}: {snapshot.n_cells:,} cells, "
            f"{payload['features']:,} features in the vocabulary"
        )
        table = Table("data set", "cells", "shards", "MB", "organism", "licence", "sources", box=None)
        for name, row in datasets.items():
            table.add_row(
                name,
                f"{row['cells']:,}",
                str(row["shards"]),
                f"{row['bytes'] / 1e6:,.1f}",
                row["organism"],
                row["licence"],
                str(len(row["sources"])),
            )
        console.print(table)
        console.print("Columns: " + ", ".join(f"{name} [dim]{kind}[/dim]" for name, kind in snapshot.columns.items()))

    emit(payload, as_json, render)


@app.command()
def query(
    atlas: Where_,
    where: Predicate = None,
    columns: Annotated[str, typer.Option(help="Columns to print, separated by commas.")] = "",
    count: Annotated[str, typer.Option(help="Count the cells by the values of this column instead.")] = "",
    limit: Annotated[int, typer.Option(help="Print at most so many cells.", min=0)] = 20,
    version: Version = None,
    as_json: Json = False,
) -> None:
    """Find cells by their metadata."""
    selection = Atlas.open(atlas).snapshot(version).select(where)
    if count:
        found: Counter[str] = Counter()
        for value, n in selection.value_counts(count).items():
            found["(missing)" if value is None else str(value)] += n

        def render_counts() -> None:
            table = Table(count, "cells", box=None)
            for value, n in found.items():
                table.add_row(value, f"{n:,}")
            console.print(table)

        emit({"cells": selection.n_cells, "column": count, "counts": found}, as_json, render_counts)
        return
    names = [name.strip() for name in columns.split(",") if name.strip()]
    names = names or ["cell_id", "dataset", "barcode", "n_genes", "n_counts"]
    rows = selection.head(names, limit).to_pylist()
    rows = [{key: value.hex() if isinstance(value, bytes) else value for key, value in row.items()} for row in rows]

    def render() -> None:
        table = Table(*names, box=None)
        for row in rows:
            table.add_row(*("" if row[name] is None else str(row[name]) for name in names))
        console.print(table)
        console.print(
            f"{selection.n_cells:,} cells" + (f", the first {limit} shown" if limit < selection.n_cells else "")
        )

    emit({"cells": selection.n_cells, "shards": len(selection.shards), "rows": rows}, as_json, render)


@app.command()
def verify(atlas: Where_, version: Version = None, as_json: Json = False) -> None:
    """Read every byte of a snapshot and compare it with its checksums."""
    opened = Atlas.open(atlas)
    total = sum(entry.bytes for entry in opened.snapshot(version).shards)
    with progress(total, "verifying", "bytes") as advance:
        found = opened.verify(version, progress=advance)

    def render() -> None:
        for damage in found.damage:
            console.print(f"[red]damaged[/red] {damage.where}: {damage.what}")
        if found.sound:
            console.print(
                f"Snapshot {found.version} is sound: {found.shards} shards, {found.bytes / 1e6:,.1f} MB read."
            )

    emit({**found.model_dump(mode="json"), "sound": found.sound}, as_json, render)
    found.check()


@app.command()
def read(
    atlas: Where_,
    output: Annotated[Path, typer.Argument(help="The h5ad to write.")],
    where: Predicate = None,
    version: Version = None,
    as_json: Json = False,
) -> None:
    """Write cells of a snapshot into one h5ad file."""
    from cellmill.atlas.reading import read as read_atlas

    if output.exists():
        raise ConfigError("The file exists.", where=str(output), fix="Choose another name, or delete it first.")
    found = read_atlas(atlas, version, where)
    output.parent.mkdir(parents=True, exist_ok=True)
    found.write_h5ad(output)
    emit(
        {"output": str(output), "cells": found.n_obs, "genes": found.n_vars},
        as_json,
        lambda: console.print(f"{found.n_obs:,} cells x {found.n_vars:,} genes written to {output}."),
    )
