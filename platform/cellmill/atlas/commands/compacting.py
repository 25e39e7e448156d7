"""Cells of several data sets in the same shards: compact."""

from __future__ import annotations

from typing import Annotated

import typer

from cellmill.atlas.atlas import Atlas
from cellmill.atlas.commands.options import DryRun, Json, Where_
from cellmill.atlas.compacting import SHARD_CELLS, THREADS
from cellmill.console import console, emit, progress


def compact(
    atlas: Where_,
    dataset: Annotated[
        list[str] | None,
        typer.Option("--dataset", "-d", help="A data set; may be given again. All that are not linked by default."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the order.", min=0)] = 0,
    shard_cells: Annotated[
        int, typer.Option("--shard-cells", help="Cells of a new shard, about.", min=1)
    ] = SHARD_CELLS,
    threads: Annotated[
        int, typer.Option("--threads", help="Shards that are read, and then written, side by side.", min=1)
    ] = THREADS,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Shuffle the cells of data sets into new shards, so that neighbours come from all of them.

    It is a commit like others: nothing is lost, and a rollback undoes it.
    """
    from cellmill.atlas.compacting import compact as run

    opened = Atlas.open(atlas)
    trial = run(opened, dataset or (), seed=seed, shard_cells=shard_cells, dry_run=True)
    found = trial
    if not dry_run:
        with progress(sum(trial.datasets.values()) + trial.hidden, "compacting") as advance:
            found = run(opened, dataset or (), seed=seed, shard_cells=shard_cells, threads=threads, progress=advance)

    def render() -> None:
        cells = sum(found.datasets.values())
        named = ", ".join(f"{n:,} of {name}" for name, n in found.datasets.items())
        if dry_run and found.temporary_bytes:
            console.print(
                f"{cells:,} cells ({named}) in {found.shards_before} shards would become about {found.shards_after}; "
                f"temporary files: about {found.temporary_bytes / 1e6:,.0f} MB."
            )
        elif not found.changed:
            console.print(f"Nothing to do: snapshot {found.snapshot} has these cells in one order already.")
        else:
            console.print(
                f"Snapshot {found.snapshot}: {cells:,} cells ({named}) of {found.shards_before} shards, "
                f"{found.bytes_before / 1e6:,.1f} MB, are in {found.shards_after}, {found.bytes_after / 1e6:,.1f} MB."
            )
            console.print("Older snapshots keep the old shards until `cellmill atlas gc --forget`.")
        if found.left_out:
            console.print(f"Linked, and left where they are: {', '.join(found.left_out)} (--dataset copies them)")
        if found.hidden:
            console.print(f"{found.hidden:,} hidden cells stay hidden, in the new shards.")

    emit({**found.model_dump(mode="json"), "dry_run": dry_run}, as_json, render)
