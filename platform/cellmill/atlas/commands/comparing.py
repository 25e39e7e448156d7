"""Comparing snapshots and selections: diff, leakage."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from cellmill.atlas.atlas import Atlas
from cellmill.atlas.commands.options import Json, Where_
from cellmill.atlas.selection import Selection
from cellmill.console import console, emit
from cellmill.errors import ConfigError

Snapshot_ = Annotated[str, typer.Argument(help="Number or tag of a snapshot.")]


def diff(
    atlas: Where_,
    before: Snapshot_,
    after: Annotated[str | None, typer.Argument(help="Another; the newest by default.")] = None,
    as_json: Json = False,
) -> None:
    """Show what changed between two snapshots: data sets, shards, cells, features."""
    from cellmill.atlas.comparing import compare

    opened = Atlas.open(atlas)
    found = compare(opened.snapshot(before), opened.snapshot(after))

    def render() -> None:
        console.print(
            f"From snapshot {found.before} to {found.after}: {found.cells_before:,} cells become {found.cells_after:,}"
        )
        table = Table("data set", "", "cells", "shards", "features", box=None)
        for name, change in found.datasets.items():
            table.add_row(
                name,
                change.kind,
                f"+{change.cells_added:,} -{change.cells_removed:,}",
                f"+{change.shards_added} -{change.shards_removed} ~{change.shards_changed}",
                f"+{change.features_added:,} -{change.features_removed:,}",
            )
        console.print(table if found.datasets else "They have the same cells.")

    emit(found.model_dump(mode="json"), as_json, render)


def leakage(
    first: Annotated[str, typer.Argument(metavar="A", help="Atlas, or ATLAS@SNAPSHOT.")],
    second: Annotated[str | None, typer.Argument(metavar="[B]", help="Another, or another snapshot.")] = None,
    where: Annotated[
        list[str] | None, typer.Option("--where", "-w", help="Predicate for A; given again, for B.")
    ] = None,
    donor: Annotated[
        list[str] | None,
        typer.Option("--donor", help="Column with the donor; given again, that of B. Found by default."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Report what two snapshots, or two parts of one, have in common: cells, barcodes, donors, data sets."""
    from cellmill.atlas.leakage import NEARLY_EMPTY, find_leakage

    predicates = where or []
    if len(predicates) not in (0, 2) or (second is None and not predicates):
        raise ConfigError(
            "Two things are compared.",
            where="leakage",
            fix='Give two snapshots, or one and two predicates: cellmill atlas leakage A -w "..." -w "..."',
        )
    a = _selection(first, predicates[0] if predicates else None)
    b = _selection(second or first, predicates[1] if predicates else None)
    found = find_leakage(a, b, donor=donor)

    def render() -> None:
        for letter, side in (("A", found.a), ("B", found.b)):
            console.print(
                f"{letter}: {side.cells:,} cells of {side.snapshot}" + (f", {side.where}" if side.where else "")
            )
        share = found.equal_cells / found.b.cells if found.b.cells else 0.0
        console.print(f"Cells of B whose counts equal those of a cell of A: {found.equal_cells:,} ({share:.2%})")
        for pair in found.by_dataset:
            console.print(f"  {pair.cells:,} of {pair.b} are in {pair.a}")
        if found.nearly_empty:
            console.print(
                f"{found.nearly_empty:,} cells with fewer than {NEARLY_EMPTY} genes were compared by barcode as well"
            )
        console.print(f"Cells of B that are cells of A, by source and row: {found.same_cells:,}")
        console.print(f"Cells of B with data set and barcode of a cell of A: {found.same_barcodes:,}")
        console.print(f"Data sets in both: {', '.join(found.datasets) or 'none'}")
        if found.donor_columns:
            columns = " and ".join(dict.fromkeys(found.donor_columns))
            donors = ", ".join(found.donors[:10])
            console.print(f"Donors in both, by data set and name ({columns}): {found.n_donors:,}  {donors}")
            if found.donor_names:
                names = ", ".join(found.donor_names[:10])
                console.print(f"Donors of one name in different data sets, the same person or not: {names}")
        else:
            console.print("Donors: not both have a column that is known; name it with --donor")
        if not found.clean:
            console.print("B is not independent of A.", style="yellow")
        elif found.donor_names:
            console.print("No cell is in both; whether donors of one name are the same person is not known.")
        elif found.donor_columns:
            console.print("No cell and no donor is in both.", style="green")
        else:
            console.print("No cell is in both; whether donors are is not known.")

    emit({**found.model_dump(mode="json"), "clean": found.clean}, as_json, render)


def _selection(thing: str, where: str | None) -> Selection:
    head, slash, last = thing.rpartition("/")
    name, _, version = last.partition("@")
    return Atlas.open(f"{head}{slash}{name}").snapshot(version or None).select(where)
