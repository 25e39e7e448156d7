"""The card of a model: README.md, generated from what the folder holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cellmill.lineage import Lineage

_PURPOSE = {
    "embed": "It turns the raw counts of a cell into a vector.",
    "annotate": "It turns the raw counts of a cell into a label with a confidence, and into a vector.",
}


def write_card(
    *,
    name: str,
    task: str,
    description: str,
    licence: str,
    n_weights: int,
    n_features: int,
    preprocessing: Mapping[str, Any],
    labels: Mapping[str, Any],
    metrics: Mapping[str, Any],
    lineage: Lineage,
) -> str:
    """Return the card as Markdown, with the front matter that model hubs read."""
    head = ["---", "library_name: cellmill", f"tags: [single-cell, rna, {task}]"]
    if licence:
        head.append(f"license: {licence}")
    parts = [
        "\n".join([*head, "---"]),
        f"# {name}",
        " ".join(part for part in (description, _PURPOSE[task]) if part),
        f"{n_weights:,} weights, {n_features:,} features in the vocabulary.",
        "## Use",
        _use(task),
        "## Measured",
        _metrics(metrics),
    ]
    if labels:
        parts += ["## Labels", _labels(labels)]
    parts += ["## What is done to counts before the model", _pairs(preprocessing), "## Made from", _lineage(lineage)]
    parts += [
        "## Limits",
        "Input is raw counts of the organism it was trained on. Scores hold for cells like those it was tested on. "
        "It is a research tool, not a medical device.",
    ]
    return "\n\n".join(parts) + "\n"


def _use(task: str) -> str:
    return f"```sh\ncellmill {task} cells.h5ad out.h5ad --model PATH_OF_THIS_FOLDER\n```"


def _metrics(metrics: Mapping[str, Any]) -> str:
    by_method = {key: value for key, value in metrics.items() if isinstance(value, Mapping)}
    plain = {key: value for key, value in metrics.items() if not isinstance(value, Mapping | list)}
    tables = []
    if by_method:
        columns = list(dict.fromkeys(column for row in by_method.values() for column in row))
        rows = [[key, *(_number(row.get(column)) for column in columns)] for key, row in by_method.items()]
        tables.append(_table(["", *columns], rows))
    if plain:
        tables.append(_table(["", "value"], [[key, _number(value)] for key, value in plain.items()]))
    return "\n\n".join(tables) or "Nothing was measured."


def _labels(labels: Mapping[str, Any]) -> str:
    lines = []
    for key, names in labels.items():
        if isinstance(names, list | tuple):
            lines.append(f"* {key} ({len(names)}): {', '.join(map(str, names))}")
        else:
            lines.append(f"* {key}: {_short(names)}")
    return "\n".join(lines)


def _lineage(lineage: Lineage) -> str:
    rows = [
        [source.name, f"`{source.digest}`", str(source.facts.get("licence") or "not stated"), source.location]
        for source in lineage.sources()
    ]
    above = "\n".join(f"* {node.kind} {node.name} `{node.digest}`" for node in lineage.walk() if node.kind != "source")
    return above + ("\n\n" + _table(["source file", "BLAKE3", "licence", "location"], rows) if rows else "")


def _pairs(values: Mapping[str, Any]) -> str:
    return "\n".join(f"* {key}: {_short(value)}" for key, value in values.items()) or "Nothing."


def _short(value: Any) -> str:
    if isinstance(value, list | tuple) and len(value) > 8:
        return f"{len(value):,} values"
    text = str(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def _number(value: Any) -> str:
    if value is None:
        return "n/a"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
