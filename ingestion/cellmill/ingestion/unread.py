"""Counts that are in a source and that nobody asked for: not read, and not passed over without a word either."""

from __future__ import annotations

from cellmill.errors import CellmillError
from cellmill.ingestion.places import holds_counts
from cellmill.ingestion.sources import Source
from cellmill.ingestion.sources.base import Tables
from cellmill.ingestion.sources.joined import JoinedSource
from cellmill.ingestion.sources.obsm import PREFIX

_POSITIONS = ("X_", "spatial")
"""How names of embeddings and of places on a slide begin: whole numbers there are no counts."""


def unread_counts(source: Source, place: str, megabytes: float) -> tuple[str, ...]:
    """Return the further tables of cells that hold counts and are not read, such as ``obsm/grna_counts``.

    Parameters
    ----------
    source
        The source.
    place
        What is read of it.
    megabytes
        Memory of a task; tables that cannot be looked at within it are passed over.
    """
    parts = [part[:2] for part in source.parts(place)] if isinstance(source, JoinedSource) else [(source, place)]
    first = parts[0][0]
    found = []
    for one in {id(part): part for part, _ in parts}.values():
        taken = [own for part, own in parts if part is one]
        file = "" if one is first else f"{one.url.rsplit('/', 1)[-1]}: "
        found += [f"{file}{table}" for table in _tables(one, megabytes) if table not in taken]
    return tuple(found)


def _tables(source: Source, megabytes: float) -> list[str]:
    tables = source.tables() if isinstance(source, Tables) else []
    names = [table for table in tables if not table.removeprefix(PREFIX).startswith(_POSITIONS)]
    return [table for table in names if _holds_counts(source, table, megabytes)]


def _holds_counts(source: Source, table: str, megabytes: float) -> bool:
    try:
        return holds_counts(source, table, megabytes)
    except CellmillError:
        return False  # text among the columns, or damage where nothing is wanted
