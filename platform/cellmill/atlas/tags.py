"""Tags: names for snapshots, which a garbage collection never forgets."""

from __future__ import annotations

import difflib
import re
import time
from typing import TYPE_CHECKING

from cellmill.atlas.forgotten import check_known
from cellmill.atlas.record import encode, read_record, read_records
from cellmill.config import Config
from cellmill.errors import AtlasError, ConfigError
from cellmill.storage import Storage

if TYPE_CHECKING:
    from cellmill.atlas.atlas import Atlas

_FOLDER = "tags"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,99}")


class Tag(Config):
    """A name for a snapshot.

    Attributes
    ----------
    name
        Letters, digits, dots, dashes and underscores, a letter first.
    version
        The snapshot.
    time
        When it was given, UTC, ISO 8601.
    message
        Why.
    """

    name: str
    version: int
    time: str
    message: str = ""


def all_tags(storage: Storage) -> list[Tag]:
    """Return all tags, by name."""
    return read_records(storage, _FOLDER, Tag)


def find_tag(storage: Storage, name: str) -> Tag:
    """Return a tag.

    Raises
    ------
    AtlasError
        There is none of this name.
    """
    tag = read_record(storage, _key(name), Tag) if _NAME.fullmatch(name) else None
    if tag is None:
        names = [found.name for found in all_tags(storage)]
        near = difflib.get_close_matches(name, names, n=1)
        listing = f"Tags: {', '.join(names)}." if names else "There are no tags; `cellmill atlas log` lists snapshots."
        fix = f"Did you mean {near[0]!r}?" if near else listing
        raise AtlasError(f"No snapshot is called {name!r}.", where=storage.url, fix=fix)
    return tag


def add_tag(atlas: Atlas, name: str, version: int | str | None = None, message: str = "") -> Tag:
    """Give a snapshot, the newest by default, a name.

    Raises
    ------
    ConfigError
        The name is not one.
    AtlasError
        The name is given, or there is no such snapshot.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot be a tag.",
            where=atlas.url,
            fix="Use letters, digits, dots, dashes and underscores, with a letter first.",
        )
    number = atlas.snapshot(version).version
    tag = Tag(name=name, version=number, time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), message=message)
    if not atlas.storage.put_if_absent(_key(name), encode(tag)):
        there = find_tag(atlas.storage, name)
        if there.version == number:
            return there
        raise AtlasError(
            f"Snapshot {there.version} is called {name!r} already.",
            where=atlas.url,
            fix=f"Choose another name, or delete that one: cellmill atlas tag {atlas.url} {name} --delete",
        )
    try:
        # A collection marks what it forgets, then looks for tags; this gives the tag, then looks for marks.
        check_known(atlas.storage, number)
    except AtlasError:
        atlas.storage.delete(_key(name))
        raise
    return tag


def delete_tag(storage: Storage, name: str) -> Tag:
    """Take a name away, and return what it stood for.

    Raises
    ------
    AtlasError
        There is none of this name.
    """
    tag = find_tag(storage, name)
    storage.delete(_key(name))
    return tag


def _key(name: str) -> str:
    return f"{_FOLDER}/{name}.json"
