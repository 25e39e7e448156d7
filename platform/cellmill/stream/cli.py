"""`cellmill stream`: what the stream achieves on a user's own machine and cells."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from cellmill.atlas import Atlas, Selection
from cellmill.console import console, emit
from cellmill.errors import ConfigError
from cellmill.stream.bench import StreamBench, bench
from cellmill.stream.config import StreamConfig
from cellmill.stream.demand import GpuConfig
from cellmill.stream.shard_columns import class_counts
from cellmill.tokens import Modalities, TokenConfig, Tokeniser

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Stream the cells of an atlas as tokens.",
)
_USUAL = ("dataset", "donor_id", "donor", "cell_type")


@app.callback()
def stream() -> None:
    """Stream the cells of an atlas as tokens."""


@app.command("bench")
def bench_command(
    atlas: Annotated[str, typer.Argument(metavar="ATLAS", help="Path or URL of the atlas.")],
    where: Annotated[str | None, typer.Option("--where", "-w", help="Only cells that fulfil this predicate.")] = None,
    version: Annotated[int | None, typer.Option("--version", "-v", help="Snapshot; the newest by default.")] = None,
    cells: Annotated[int, typer.Option(help="Cells to time.", min=1)] = 100_000,
    by: Annotated[list[str] | None, typer.Option(help="Column whose mixing is looked at; may be repeated.")] = None,
    batch_size: Annotated[int, typer.Option(help="Cells of a global batch.", min=1)] = 256,
    max_genes: Annotated[int, typer.Option(help="Genes of a cell, at most.", min=1)] = 1200,
    prompt_ratio: Annotated[float, typer.Option(help="Share of genes to generate; 0 for none.", min=0, max=0.99)] = 0.5,
    token_capacity: Annotated[int, typer.Option(help="Tokens that a forward pass may hold.", min=1)] = 65_536,
    threads: Annotated[float, typer.Option(help="Threads that make batches.", min=0.1)] = 1.0,
    tflops: Annotated[float, typer.Option(help="Peak of your GPU, TFLOP/s: H100 989, A100 312.", min=0.1)] = 989.0,
    utilisation: Annotated[float, typer.Option(help="Share of it that training reaches.", min=0.01, max=1)] = 0.32,
    d_model: Annotated[int, typer.Option(help="Width of your model; scGPT's by default.", min=1)] = 512,
    d_ff: Annotated[int, typer.Option(help="Width of its feed-forward layers.", min=1)] = 512,
    layers: Annotated[int, typer.Option(help="Its layers.", min=1)] = 12,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Measure the stream on these cells and this machine, and say how many cores would feed one GPU."""
    opened = Atlas.open(atlas)
    selection = opened.snapshot(version).select(where)
    if selection.n_cells == 0:
        raise ConfigError("No cell is selected.", where=f"--where {where}", fix="Widen the predicate.")
    columns = by or [name for name in _USUAL if name in selection.snapshot.columns]
    found = bench(
        selection,
        Tokeniser(
            TokenConfig(max_genes=max_genes, prompt_ratios=(prompt_ratio,) if prompt_ratio else ()),
            modalities=Modalities.of(opened.vocabulary()),
        ),
        StreamConfig(batch_size=batch_size, data_cpus=threads),
        by={name: _values(selection, name) for name in columns},
        cells=cells,
        gpu=GpuConfig(tflops=tflops, utilisation=utilisation, d_model=d_model, d_ff=d_ff, n_layers=layers),
        token_capacity=token_capacity,
    )
    emit(found.model_dump(mode="json"), as_json, lambda: _render(found))


def _values(selection: Selection, name: str) -> list[str]:
    values = class_counts(selection, name)
    if not values:
        raise ConfigError(f"No selected cell has a value in {name!r}.", where="--by", fix="Choose another column.")
    return sorted(values)


def _render(found: StreamBench) -> None:
    table = Table("", "", box=None, show_header=False)
    table.add_row("streamed", f"{found.cells:,} cells in {found.steps:,} batches")
    table.add_row("cells", f"{found.cells_per_second:,.0f} a second, {found.cells_per_core_second:,.0f} a CPU-second")
    table.add_row("tokens", f"{found.tokens_per_second:,.0f} a second, {found.tokens_per_cell:,.0f} a cell")
    table.add_row(
        "bytes a cell", f"{found.disk_bytes_per_cell:,.0f} on disk, {found.batch_bytes_per_cell:,.0f} in packed batches"
    )
    table.add_row("time", ", ".join(f"{name} {share:.0%}" for name, share in found.stages.items()))
    for name, share in found.mixing.items():
        table.add_row(f"mixing of {name}", f"{share:.1%} of random batches' entropy")
    for part in found.sharing:
        table.add_row(
            f"{part.workers} worker{'s' if part.workers > 1 else ''}",
            f"the slowest has {part.straggler_ratio:.3f} times the mean's tokens; "
            f"{part.micro_batches:.1f} micro-batches a step waste {part.waste:.2%}",
        )
    demand = f"trains on about {found.gpu_cells_per_second:,.0f} cells a second"
    table.add_row("one GPU", f"{demand}: {found.cores_per_gpu:.2f} of these cores feed it")
    console.print(table)
