"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

Where_ = Annotated[str, typer.Argument(metavar="ATLAS", help="Path or URL of the atlas.")]
Version = Annotated[
    str | None, typer.Option("--version", "-v", help="Number or tag of a snapshot; the newest by default.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Predicate = Annotated[
    str | None, typer.Option("--where", "-w", help="Predicate, such as \"donor != 'human4' and n_genes >= 500\".")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; it is kept with the atlas.")]
