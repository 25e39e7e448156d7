"""`cellmill demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from cellmill.console import console, emit


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder to write; an earlier demo is replaced.")
    ] = Path("demo-run"),
    port: Annotated[int, typer.Option(help="Port of the endpoint, on this machine only.")] = 8123,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Run the whole line on real cells: ingest, pretrain, fine-tune, serve, query.

    Takes a few minutes on 2 cores. The cells are a public data set of the human pancreas (2,142 cells, 4 donors); one
    donor is held out. The configurations stay in the folder: change them, and run the commands that are printed.
    """
    from cellmill.serving.demo.line import DemoConfig, run_demo
    from cellmill.serving.demo.report import where_the_model_stands

    result = run_demo(DemoConfig(output=output, port=port))

    def render() -> None:
        table = Table("method", "accuracy", "macro-F1", title="Cell types of a donor that no model saw")
        for name, score in result.scores.items():
            table.add_row(name, f"{score['accuracy']:.3f}", f"{score['macro_f1']:.3f}")
        console.print(table)
        console.print(where_the_model_stands(result.scores))
        console.print(result.served)
        steps = ", ".join(f"{name} {value:.0f} s" for name, value in result.seconds.items())
        console.print(f"Took {sum(result.seconds.values()):.0f} s: {steps}.")
        console.print(Text.assemble(("Report:", "bold"), f" {result.report}"), soft_wrap=True)
        command = f" cellmill lineage {output}/answer.json --root {output}"
        console.print(Text.assemble(("Lineage:", "bold"), command), soft_wrap=True)

    emit(result.model_dump(mode="json"), as_json, render)
