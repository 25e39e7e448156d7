"""Names of data sets, for sources to which nobody gave one."""

from __future__ import annotations

import glob
from collections.abc import Iterable
from pathlib import Path

from cellmill.console import console
from cellmill.ingestion.sources.place import Place


def dataset_name(pattern: str, place: Place) -> str:
    """Return the name of what a path or pattern found: that of the file or folder.

    Where all that a pattern can find is called alike (``runs/*/outs``), it is what the pattern leaves open (``s1``),
    whatever else it finds: a name must not change when there are more.
    """
    return name_by_folders(pattern, place) or _allowed(Path(place.name).stem)


def name_by_folders(pattern: str, place: Place) -> str | None:
    """Return what a pattern that ends with a fixed name leaves open; None for any other path."""
    parts = pattern.rstrip("/").split("/")
    found = place.location.rstrip("/").split("/")[-len(parts) :]
    parts = parts[-len(found) :]
    if _is_open(parts[-1], found[-1]):
        return None
    folders = [name for part, name in zip(parts, found, strict=True) if _is_open(part, name)]
    return _allowed("_".join(folders)) if folders else None


def tell_namesakes(names: Iterable[tuple[Place, str]]) -> None:
    """Say which sources become one data set only because nobody gave them names."""
    of_name: dict[str, list[Place]] = {}
    for place, name in names:
        of_name.setdefault(name, []).append(place)
    for name, places in of_name.items():
        if len(places) > 1:
            console.print(
                f"{len(places):,} sources are one data set, {name}, for they are called alike: {places[0].url}, "
                f"{places[1].url}{', ...' if len(places) > 2 else ''}. Set `dataset` for each, or once if they belong "
                "together; or end the pattern with a fixed name, and they are named by their folders.",
                style="yellow",
                soft_wrap=True,
            )


def _is_open(part: str, name: str) -> bool:
    """Return whether a part of a pattern stands for other names, too; a file may be called like a pattern."""
    return glob.has_magic(part) and part not in (name, glob.escape(name))


def _allowed(text: str) -> str:
    letters = (letter if letter.isalnum() or letter in "._-" else "_" for letter in text)
    return "".join(letters).lstrip("._-") or "data"
