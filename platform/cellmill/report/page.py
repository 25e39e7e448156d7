"""Sections of text, tables and pictures become one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment
from pydantic import Field

from cellmill.config import Config
from cellmill.console import printable


class Figure(Config):
    """A PNG on disk and the line below it."""

    path: Path
    caption: str

    @property
    def data_uri(self) -> str:
        """The picture as a ``data:`` URI."""
        return "data:image/png;base64," + base64.b64encode(self.path.read_bytes()).decode()


class Table(Config):
    """Rows of text under a header; the row called `highlight` stands out."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    highlight: str = ""


class Section(Config):
    """One chapter of a report."""

    title: str
    text: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    details: dict[str, str] = Field(default_factory=dict)


def write_page(output: Path, title: str, sections: Sequence[Section], *, lead: str = "") -> Path:
    """Write the sections as one HTML file.

    Parameters
    ----------
    output
        Path of the file; its folder is made.
    title, lead
        Heading of the page and the sentence below it.
    sections
        Chapters in order; ``details`` are shown folded.
    """
    template = files("cellmill.report").joinpath("page.html.j2").read_text()
    page = html_environment().from_string(template)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page.render(title=title, lead=lead, sections=sections, version=version("cellmill")))
    return output


def html_environment() -> Environment:
    """Return what renders pages: all text in them is escaped and printable."""
    return Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=_printable)


def _printable(value: object) -> object:
    return printable(value) if isinstance(value, str) else value
