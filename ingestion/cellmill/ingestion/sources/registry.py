"""The formats of sources: those of Cellmill, and those that other packages bring.

A format is one small module with an object that has a name, looks into a place, and opens it::

    class Csv:
        name = "csv"

        def recognises(self, place: Place) -> bool:
            return not place.is_dir and place.head(8).startswith(b"barcode,")

        def open(self, place: Place, name: str, config: SourceConfig) -> Source:
            return CsvSource(place, name)

    FORMAT = Csv()

A package makes it known by an entry point of the group ``cellmill.sources``::

    [project.entry-points."cellmill.sources"]
    csv = "my_package.csv:FORMAT"

From then on ``cellmill ingest`` reads such files. What `open` returns has the members of `Source`; it is opened again,
by the place's location, in every process that reads a part of it, so it must not depend on anything but its arguments.
Errors that a user can mend are `SourceError`.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Protocol

from cellmill.errors import ConfigError, SourceError
from cellmill.ingestion.config import SourceConfig
from cellmill.ingestion.sources.base import Source
from cellmill.ingestion.sources.place import Place
from cellmill.ingestion.sources.remote import short
from cellmill.ingestion.sources.unknown import describe

GROUP = "cellmill.sources"

BUILT_IN = {
    "h5ad": "cellmill.ingestion.sources.h5ad:FORMAT",
    "10x_h5": "cellmill.ingestion.sources.tenx_h5:FORMAT",
    "10x_mtx": "cellmill.ingestion.sources.tenx_mtx:FORMAT",
    "10x_outs": "cellmill.ingestion.sources.tenx_outs:FORMAT",
    "h5mu": "cellmill.ingestion.sources.h5mu:FORMAT",
    "soma": "cellmill.ingestion.sources.soma:FORMAT",
    "parquet": "cellmill.ingestion.sources.arrow:FORMAT",
    "loom": "cellmill.ingestion.sources.loom:FORMAT",
    "zarr": "cellmill.ingestion.sources.zarr:FORMAT",
}
"""Formats of Cellmill; they are entry points too, but a checkout need not be installed anew for each of them."""


class SourceFormat(Protocol):
    """A format of sources."""

    @property
    def name(self) -> str:
        """Name, as in ``format: NAME``."""
        ...

    def recognises(self, place: Place) -> bool:
        """Return whether a place that exists is of this format, by what is in it; quickly."""
        ...

    def open(self, place: Place, name: str, config: SourceConfig) -> Source:
        """Open a place as the data set `name`.

        Raises
        ------
        SourceError
            It cannot be read.
        """
        ...


def open_source(place: Place, name: str, config: SourceConfig) -> Source:
    """Open a place in the format that the configuration names, or in the one that recognises it."""
    return resolve(place, config).open(place, name, config)


def resolve(place: Place, config: SourceConfig) -> SourceFormat:
    """Return the format of a place.

    Raises
    ------
    SourceError
        There is nothing, or nothing that any format recognises.
    ConfigError
        The configuration names a format that is not known, or several recognise the place.
    """
    known = formats()
    if config.format != "auto":
        if config.format not in known:
            raise ConfigError(
                f"The format {config.format!r} is not known.", where=place.url, fix=f"There are: {', '.join(known)}."
            )
        return known[config.format]
    if place.is_opaque:
        return known["soma"]
    if not place.exists:
        raise place.absent()
    found = [one for one in known.values() if _recognises(one, place)]
    if len(found) > 1:
        names = " and ".join(one.name for one in found)
        raise ConfigError(f"The file may be {names}.", where=place.url, fix="Say which with `format`.")
    if not found:
        raise SourceError(
            f"No format that is known recognises it: {describe(place)}",
            where=place.url,
            fix=f"Give a file of one of the formats {', '.join(known)}; or install a plug-in that reads it.",
        )
    return found[0]


def _recognises(one: SourceFormat, place: Place) -> bool:
    try:
        return one.recognises(place)
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise SourceError(
            f"It cannot be looked into: {short(error)}.", where=place.url, fix="Fetch or copy it again: it is damaged."
        ) from error


@cache
def formats() -> dict[str, SourceFormat]:
    """Return all formats by name.

    Raises
    ------
    ConfigError
        A plug-in takes the name of another format, or cannot be imported.
    """
    found: dict[str, SourceFormat] = {}
    for name, target in BUILT_IN.items():
        module, _, attribute = target.partition(":")
        found[name] = getattr(import_module(module), attribute)
    for point in sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value)):
        if BUILT_IN.get(point.name) == point.value:
            continue
        if point.name in found:
            raise ConfigError(
                f"Two plug-ins are called {point.name!r}.", where=point.value, fix="Uninstall one of the packages."
            )
        try:
            found[point.name] = point.load()
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                f"The plug-in {point.name!r} cannot be imported: {error}.",
                where=point.value,
                fix="Install what it needs, or uninstall the package that brings it.",
            ) from error
    return found
