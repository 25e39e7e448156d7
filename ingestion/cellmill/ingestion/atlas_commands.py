"""`cellmill atlas`, with the commands that bring cells into an atlas beside those that look into it."""

from __future__ import annotations

from typing import Annotated

import typer

from cellmill.atlas.cli import app
from cellmill.console import console, emit
from cellmill.ingestion.config import IngestConfig, SourceConfig


@app.command()
def link(
    atlas: Annotated[str, typer.Argument(metavar="ATLAS", help="Path or URL of the atlas; made if there is none.")],
    stores: Annotated[list[str], typer.Argument(metavar="STORE...", help="AnnData zarr stores: paths or URLs.")],
    dataset: Annotated[str | None, typer.Option(help="Name of the data set; by default each store's.")] = None,
    counts: Annotated[str, typer.Option(help="Where the raw counts are: X, raw.X, layers/NAME.")] = "auto",
    genes: Annotated[str, typer.Option(help="Column of var with the genes' names.")] = "auto",
    organism: Annotated[str, typer.Option(help="human or mouse; auto recognises it.")] = "auto",
    where: Annotated[str | None, typer.Option(help="Only these cells: a predicate over the store's obs.")] = None,
    licence: Annotated[str, typer.Option(help="Licence of the data.")] = "unknown",
    shard_cells: Annotated[int, typer.Option(help="Rows of a store that make one shard of the atlas.")] = 65_536,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Add AnnData zarr stores to an atlas, in one commit, and leave their counts where they are.

    Every store is read once to check its counts and to know its cells, and must stay as it is: a changed one is refused
    until it is linked again.
    """
    from cellmill.ingestion.linking import link as link_stores

    shared = {"dataset": dataset, "counts": counts, "genes": genes, "organism": organism, "where": where}
    sources = [
        SourceConfig.model_validate({"path": store, "obs": "all", "licence": licence, **shared}) for store in stores
    ]
    result = link_stores(IngestConfig(atlas=atlas, sources=tuple(sources), shard_cells=shard_cells, backend="local"))

    def render() -> None:
        for report in result.reports:
            console.print(
                f"{report.dataset}: {report.cells_out:,} of {report.cells_in:,} cells linked, counts stay in "
                f"{report.url}: {report.counts}",
                soft_wrap=True,
            )
        for name in result.unchanged:
            console.print(f"{name}: already in the atlas, unchanged", soft_wrap=True)
        console.print(f"Snapshot {result.snapshot} of {result.atlas}" + ("" if result.changed else " (no change)"))

    emit(result.model_dump(mode="json"), as_json, render)
