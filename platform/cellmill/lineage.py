"""Where a thing came from: one self-contained tree from a prediction down to the source files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from rich.text import Text
from rich.tree import Tree

from cellmill.config import Config
from cellmill.errors import SourceError

Kind = Literal["source", "dataset", "snapshot", "run", "model", "prediction"]
Fact = str | int | float | bool | None


class Lineage(Config):
    """One thing and what it was made from.

    Attributes
    ----------
    kind
        What it is.
    name
        A name for people.
    digest
        The content's identity: BLAKE3 of a source file, digest of a model folder, ``atlas-id@version`` of a snapshot.
    location
        Path or URL it was seen at.
    facts
        Anything worth keeping: cells, licence, objective, selection, versions.
    parents
        What it was made from.
    """

    kind: Kind
    name: str
    digest: str
    location: str = ""
    facts: dict[str, Fact] = Field(default_factory=dict)
    parents: tuple[Lineage, ...] = ()

    def walk(self) -> Iterator[Lineage]:
        """Yield this node, then everything below it, depth first."""
        yield self
        for parent in self.parents:
            yield from parent.walk()

    def sources(self) -> tuple[Lineage, ...]:
        """Return the source files at the end of the walk, each once."""
        found = {node.digest: node for node in self.walk() if node.kind == "source"}
        return tuple(found.values())

    def tree(self) -> Tree:
        """Return the walk as a tree for the terminal."""
        branch = Tree(self._label())
        for parent in self.parents:
            branch.add(parent.tree())
        return branch

    def _label(self) -> Text:
        facts = " · ".join(f"{key} {_show(value)}" for key, value in self.facts.items() if value is not None)
        digest = self.digest if len(self.digest) <= 24 else f"{self.digest[:16]}…"
        label = Text.assemble((self.kind, "bold"), f" {self.name} ", (digest, "dim"))
        if facts:
            label.append(f"\n  {facts}")
        if self.location:
            label.append(f"\n  {self.location}", "dim")
        return label

    def save(self, path: Path) -> None:
        """Write the tree as JSON."""
        path.write_text(json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True) + "\n")


def read_lineage(path: Path) -> Lineage:
    """Read a ``lineage.json``.

    Raises
    ------
    SourceError
        The file is missing or does not hold a lineage.
    """
    try:
        data: Any = json.loads(path.read_text())
        return Lineage.model_validate(data)
    except FileNotFoundError:
        raise SourceError(
            "There is no lineage here.", where=str(path), fix="Give a model, a run or an atlas."
        ) from None
    except ValueError as error:
        raise SourceError(f"The file does not hold a lineage: {error}", where=str(path)) from error


def _show(value: Fact) -> str:
    if isinstance(value, bool) or not isinstance(value, int):
        return str(value)
    return f"{value:,}"
