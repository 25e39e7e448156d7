"""The steps of the demo: each calls the function that its command calls, on a configuration that stays on disk."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from string import Template

from rich.text import Text

from cellmill.console import console


class Steps:
    """The folder of a demo, its configurations, and how long each step took.

    Parameters
    ----------
    directory
        Where everything is written.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.seconds: dict[str, float] = {}
        self._number = 0

    def config(self, name: str, **values: object) -> Path:
        """Write one of the demo's configurations into the folder, with its paths filled in, and return its path."""
        text = files("cellmill.serving.demo").joinpath(f"configs/{name}.yaml").read_text()
        path = self.directory / "configs" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(Template(text).substitute(dir=self.directory, **values))
        return path

    @contextmanager
    def step(self, name: str, command: str) -> Iterator[None]:
        """Announce a step with the command that does the same, and note how long it takes."""
        self._number += 1
        title = (f"\n{self._number}. {name}", "bold")
        console.print(Text.assemble(title, "  ", (f"$ {command}", "dim")), soft_wrap=True)
        start = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - start
        console.print(f"{self.seconds[name]:.0f} s", style="dim")
