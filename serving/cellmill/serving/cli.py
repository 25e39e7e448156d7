"""`cellmill serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from cellmill.config import load_config
from cellmill.console import console, emit
from cellmill.serving.config import ServeConfig
from cellmill.serving.schemas import ModelCard


def serve(
    config: Annotated[
        Path, typer.Argument(help="YAML with `models: [{name: ..., path: ...}]`, `host`, `port`, limits.")
    ],
    overrides: Annotated[list[str] | None, typer.Option("--set", help="Set a key: port=9000.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the address and models as JSON when ready.")] = False,
) -> None:
    """Serve models behind one HTTP endpoint, until Ctrl-C."""
    from cellmill.models import load_model
    from cellmill.serving.cards import card_of
    from cellmill.serving.server import running, wait_for_stop

    settings = load_config(ServeConfig, config, overrides or ())
    cards = [card_of(load_model(model.path), model.name) for model in settings.models]
    console.print(f"Starting {len(cards)} model{'s' if len(cards) != 1 else ''} ...")
    with running(settings) as url:
        ready = {"url": url, "models": [card.model_dump(mode="json", exclude={"lineage", "metrics"}) for card in cards]}
        emit(ready, as_json, lambda: _render(url, cards))
        wait_for_stop()
        console.print("Stopping ...")


def _render(url: str, cards: list[ModelCard]) -> None:
    table = Table("model", "digest", "route", box=None, pad_edge=False)
    for card in cards:
        for i, task in enumerate(card.tasks):
            name, digest = (card.name, card.digest[:12]) if i == 0 else ("", "")
            table.add_row(name, digest, f"POST {url}/v1/models/{card.name}/{task}")
    console.print(table)
    console.print(f"\nAlso GET {url}/healthz, {url}/v1/models, {url}/v1/models/NAME, {url}/openapi.json")
    console.print(
        f"\ncurl -H 'Content-Type: application/x-hdf5' --data-binary @cells.h5ad "
        f"{url}/v1/models/{cards[-1].name}/{cards[-1].tasks[-1]}\n",
        style="dim",
        soft_wrap=True,
    )
    console.print("Ctrl-C stops it.")
