"""The `cellmill` command: a table of commands, each loaded when it is called."""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
import traceback
from dataclasses import dataclass
from typing import Any

import typer
from rich.text import Text
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from cellmill.console import console
from cellmill.errors import CellmillError, ResourceError

DATA, MODELS, SERVING, TRUST = "Data", "Models", "Serving", "Start here, and trust"


@dataclass(frozen=True)
class Entry:
    """One command: where its function or typer app lives, and its line in the tour."""

    target: str
    panel: str
    help: str


COMMANDS: dict[str, Entry] = {
    "demo": Entry(
        "cellmill.serving.demo.cli:demo",
        TRUST,
        "Run the whole line on real cells: ingest, pretrain, fine-tune, serve, query.",
    ),
    "doctor": Entry("cellmill.doctor:doctor", TRUST, "Say what is installed, what would run here, what is missing."),
    "lineage": Entry("cellmill.trace:lineage", TRUST, "Walk from a prediction, model or run back to the source files."),
    "report": Entry("cellmill.report.cli:report", TRUST, "Put runs into one self-contained HTML page."),
    "datasets": Entry(
        "cellmill.ingestion.datasets.cli:app", DATA, "List and fetch public data sets (those of scGPT's paper first)."
    ),
    "ingest": Entry(
        "cellmill.ingestion.cli:ingest", DATA, "Add data sets to an atlas: genes harmonised, counts checked."
    ),
    "schedule": Entry(
        "cellmill.ingestion.schedule.cli:schedule",
        DATA,
        "Keep an atlas up to date with its sources, by a cron expression.",
    ),
    "atlas": Entry(
        "cellmill.ingestion.atlas_commands:app",
        DATA,
        "Look into an atlas and keep it: show, query, diff, link, tag, rollback, gc.",
    ),
    "stream": Entry("cellmill.stream.cli:app", DATA, "Measure the stream of tokens on your machine and cells."),
    "pretrain": Entry("cellmill.training.cli:pretrain", MODELS, "Train a model on an atlas, generatively."),
    "finetune": Entry("cellmill.training.cli:finetune", MODELS, "Teach a model your cell types, beside baselines."),
    "embed": Entry("cellmill.training.cli:embed", MODELS, "Write cell embeddings into an h5ad."),
    "annotate": Entry("cellmill.training.cli:annotate", MODELS, "Write predicted cell types into an h5ad."),
    "serve": Entry("cellmill.serving.cli:serve", SERVING, "Serve models behind one HTTP endpoint."),
}


class LazyGroup(TyperGroup):
    """A group that knows its commands' names and lines, and imports one only when it is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the commands in the order of the tour."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a placeholder with the command's line, enough for the tour."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        return TyperCommand(cmd_name, help=entry.help, rich_help_panel=entry.panel, add_help_option=False)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Import the command that is called."""
        name, command, rest = super().resolve_command(ctx, args)
        if name in COMMANDS:
            command = load(name)
        return name, command, rest


def load(name: str) -> Any:
    """Import a command and return it ready to run."""
    module, _, attribute = COMMANDS[name].target.partition(":")
    target: Any = getattr(importlib.import_module(module), attribute)
    if isinstance(target, typer.Typer):
        command = get_command(target)
    else:
        single = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
        single.command()(target)
        command = get_command(single)
    command.name = name
    return command


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def tour(version: bool = typer.Option(False, "--version", help="Print the version and leave.")) -> None:
    """Cellmill: from raw single-cell atlases to a served foundation model.

    [bold]Start with[/bold]  cellmill demo    (real cells, a few minutes, no GPU)

    [bold]Then, on your own data[/bold]

    1. cellmill ingest atlas.yaml        h5ad files become a versioned atlas

    2. cellmill pretrain pretrain.yaml   the atlas becomes a model

    3. cellmill finetune annotate.yaml   the model learns your cell types

    4. cellmill serve serve.yaml         models answer over HTTP

    5. cellmill lineage ANSWER           any answer leads back to its source files

    Every command takes --json for machines; those that read a YAML take --set key=value for any key of it.
    """
    if version:
        from importlib.metadata import version as package_version

        typer.echo(package_version("cellmill"))
        raise typer.Exit


def main() -> None:
    """Run the command line; an error of ours prints what, where and fix, and sets the exit code."""
    try:
        app()
    except CellmillError as error:
        sys.exit(report(error, as_json="--json" in sys.argv))
    except MemoryError as error:
        sys.exit(report(_out_of_memory(error), as_json="--json" in sys.argv))
    except KeyboardInterrupt:
        console.print("Stopped.")
        sys.exit(130)
    except Exception as error:  # noqa: BLE001 - the last line of defence: a defect must not fill the screen
        sys.exit(unexpected(error))


def _out_of_memory(error: MemoryError) -> ResourceError:
    said = str(error).partition("\n")[0]
    return ResourceError(
        f"There is not enough memory{f': {said}' if said else ''}.",
        fix="Close other programs, use a machine or a container with more memory, or give each task or batch less.",
    )


def unexpected(error: Exception) -> int:
    """Keep the traceback of an error that nobody foresaw in a file, and say where."""
    with tempfile.NamedTemporaryFile("w", prefix="cellmill-", suffix=".log", delete=False) as file:
        traceback.print_exception(error, file=file)
    said = f" {type(error).__name__}: {str(error)[:500]}"
    console.print(Text.assemble(("Unexpected error:", "bold red"), said))
    console.print(f"  This is a defect of Cellmill; please report it with {file.name}")
    return 70


def report(error: CellmillError, *, as_json: bool) -> int:
    """Print an error for a person on standard error, or for a machine on standard output; return its exit code."""
    if as_json:
        typer.echo(json.dumps({"error": error.as_dict()}))
        return error.exit_code
    console.print(Text.assemble(("Error:", "bold red"), f" {error.what}"))
    if error.where:
        console.print(Text.assemble("  ", ("where", "bold"), f" {error.where}"))
    if error.fix:
        console.print(Text.assemble("  ", ("fix", "bold"), f"   {error.fix}"))
    return error.exit_code


if __name__ == "__main__":
    main()
