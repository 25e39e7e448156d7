"""What a schedule's sources are now: where they are, and fingerprints that cost a look at each, not a read."""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from cellmill.errors import CellmillError, ConfigError
from cellmill.ingestion.config import IngestConfig, SourceConfig
from cellmill.ingestion.naming import name_by_folders
from cellmill.ingestion.plan import RECIPE
from cellmill.ingestion.schedule import census
from cellmill.ingestion.sources.finding import find_places
from cellmill.ingestion.sources.place import Place
from cellmill.ingestion.sources.remote import bare, is_web

_THREADS = 16
_NOT_OF_THE_RESULT = {"atlas", "sources", "output", "backend", "cluster", "task_memory_mb", "require_licence"}


@dataclass(frozen=True)
class Found:
    """One source as it is now.

    Attributes
    ----------
    key
        By which it is remembered: its URL without secrets, or the line of configuration that follows releases.
    url
        Where it is, without secrets.
    pattern
        The line of configuration that found it, without secrets.
    source
        That line with this one place as its path.
    stamp
        Size and time of change, ETag, or release; empty if it could not be looked at.
    settings
        Digest of all that the configuration says about the result.
    error
        Why it could not be looked at.
    places
        Where to look again: the source, and the files that belong to it. None of them for what never changes.
    """

    key: str
    url: str
    pattern: str
    source: SourceConfig
    stamp: str
    settings: str
    error: CellmillError | None = None
    places: tuple[Place, ...] = ()

    def is_still(self) -> bool:
        """Return whether the source is as it was when it was found: nobody is writing it."""
        try:
            return not self.places or _stamp([Place(place.location) for place in self.places]) == self.stamp
        except CellmillError:
            return False


@dataclass
class Survey:
    """All sources that are there.

    Attributes
    ----------
    found
        By key.
    missing
        What a line of the configuration names, or has just found, and is not there: key and line.
    failed
        Lines of the configuration that find nothing or cannot be followed, and why; of what they found before, nothing
        is known.
    """

    found: dict[str, Found] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    failed: dict[str, CellmillError] = field(default_factory=dict)


def survey(config: IngestConfig, releases: Callable[[], Mapping[str, Any]]) -> Survey:
    """Look at all sources of a configuration.

    Parameters
    ----------
    config
        Its paths may be versions of the Census.
    releases
        Gives the directory of Census releases; called if there is such a path.

    Raises
    ------
    ConfigError
        Two lines of the configuration find the same source.
    """
    seen = Survey()
    waiting: list[tuple[Place, str, SourceConfig]] = []
    for line in config.sources:
        pattern = bare(line.path)
        try:
            if line.path.startswith(census.PREFIX):
                _add(seen, _release(line, config, releases))
            else:
                waiting += [(place, pattern, line) for place in find_places(line.path)]
        except CellmillError as error:
            seen.failed[pattern] = error
    with ThreadPoolExecutor(_THREADS) as pool:
        looked = pool.map(lambda item: _look(item[0], item[1], item[2], config), waiting)
        for found, (place, pattern, _) in zip(looked, waiting, strict=True):
            if found is not None:
                _add(seen, found)
            else:
                seen.missing[place.url] = pattern
    return seen


def settings_digest(config: IngestConfig, source: SourceConfig) -> str:
    """Return the digest of all that a configuration says about the result of ingesting a source."""
    said = {
        "source": source.model_dump(mode="json", exclude={"path"}, exclude_defaults=True),
        "ingest": config.model_dump(mode="json", exclude=_NOT_OF_THE_RESULT, exclude_defaults=True),
        "recipe": RECIPE,
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _look(place: Place, pattern: str, line: SourceConfig, config: IngestConfig) -> Found | None:
    """Return what is at a place, None for nothing."""
    # A name found by a pattern is no pattern itself, whatever letters are in it.
    path = place.location if is_web(place.location) else glob.escape(place.location)
    stamp, error = "", None
    places: tuple[Place, ...] = (place,)
    try:
        if not place.exists:
            return None
        beside = [line.features, *(path for join in line.join for path in (join.path, join.features))]
        places = (place, *(Place(path) for path in beside if path is not None))
        stamp = _stamp(places)
    except CellmillError as caught:
        error = caught
    name = line.dataset or name_by_folders(line.path, place)
    source = line.model_copy(update={"path": path, "dataset": name})
    return Found(place.url, place.url, pattern, source, stamp, settings_digest(config, line), error, places)


def _stamp(places: Sequence[Place]) -> str:
    return " ".join(place.stamp for place in places)


def _release(line: SourceConfig, config: IngestConfig, releases: Callable[[], Mapping[str, Any]]) -> Found:
    date, path = census.resolve(line.path, line.organism, releases)
    source = line.model_copy(update={"path": path})
    # A release never changes, so its date is its fingerprint; the key stays when the newest release is another one.
    return Found(line.path, path, line.path, source, f"census-{date}", settings_digest(config, line))


def _add(seen: Survey, found: Found) -> None:
    other = seen.found.setdefault(found.key, found)
    if other is not found:
        raise ConfigError(
            "Two lines of the configuration find the same source.",
            where=found.url,
            fix=f"Narrow {other.pattern} or {found.pattern}.",
        )
