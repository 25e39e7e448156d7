"""Which release of the CELLxGENE Census a line that follows them means today."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from cellmill.errors import ConfigError, DownloadError, SourceError

PREFIX = "census:"
_TIMEOUT_S = (15, 60)
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_ALIASES = {"latest-lts": "stable"}
"""Our names for what the directory of releases calls otherwise."""


def resolve(path: str, organism: str, releases: Callable[[], Mapping[str, Any]]) -> tuple[str, str]:
    """Return the date of the release that a path means, and the path with that date.

    Parameters
    ----------
    path
        ``census:VERSION`` or ``census:VERSION/ORGANISM``. The version is a date, ``latest-lts`` (the newest release
        that is kept for years) or ``latest`` (the newest weekly one).
    organism
        Stands in where the path does not name one; ``auto`` leaves it to the format.
    releases
        Gives the directory of releases; asked only for versions that are no dates.

    Raises
    ------
    ConfigError
        There is no such version.
    SourceError
        The release was retracted.
    """
    version, _, wanted = path.removeprefix(PREFIX).partition("/")
    wanted = wanted or (organism if organism != "auto" else "")
    date = version if _DATE.fullmatch(version) else _date(path, version, releases())
    return date, f"{PREFIX}{date}/{wanted}" if wanted else f"{PREFIX}{date}"


def _date(path: str, version: str, releases: Mapping[str, Any]) -> str:
    name, seen = _ALIASES.get(version, version), set[str]()
    while isinstance(releases.get(name), str) and name not in seen:
        seen.add(name)
        name = releases[name]
    release = releases.get(name)
    if not isinstance(release, dict) or not _DATE.fullmatch(str(release.get("release_build", ""))):
        dated = sorted(key for key in releases if _DATE.fullmatch(key))
        raise ConfigError(
            f"The Census has no version {version!r}.", where=path, fix=f"There are: latest-lts, {', '.join(dated)}."
        )
    if retraction := release.get("retraction"):
        reason = retraction.get("reason", "no reason is given")
        raise SourceError(
            f"The newest Census of the kind {version!r} was retracted: {reason}",
            where=path,
            fix="Name another release by its date.",
        )
    return str(release["release_build"])


def read_releases(directory: str) -> dict[str, Any]:
    """Read the directory of releases.

    Parameters
    ----------
    directory
        A URL or a file.

    Raises
    ------
    DownloadError
        It cannot be fetched.
    SourceError
        It is no JSON object, or no file.
    """
    if urlsplit(directory).scheme in ("http", "https"):
        try:
            answer = requests.get(directory, timeout=_TIMEOUT_S)
            answer.raise_for_status()
        except requests.RequestException as error:
            raise DownloadError(
                f"The directory of Census releases cannot be fetched: {error}.",
                where=directory,
                fix="Name the release by its date, which needs no directory, or set `census_directory` to a file.",
            ) from error
        text = answer.text
    else:
        try:
            text = Path(directory).read_text()
        except OSError as error:
            raise SourceError(f"The directory of Census releases cannot be read: {error}.", where=directory) from error
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise SourceError("The directory of Census releases is no JSON object.", where=directory)
    return found
