"""Versions of the CELLxGENE Census: names such as ``latest-lts`` become places of SOMA experiments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from cellmill.errors import ConfigError, DownloadError, SourceError

PREFIX = "census:"
ORGANISMS = {"human": "homo_sapiens", "mouse": "mus_musculus"}
_TIMEOUT_S = (15, 60)
_ALIASES = {"latest-lts": "stable"}
"""Our names for what the directory of releases calls otherwise."""


def resolve(path: str, organism: str, releases: dict[str, Any]) -> tuple[str, str]:
    """Return which release a path names, and where its experiment is.

    Parameters
    ----------
    path
        ``census:VERSION`` or ``census:VERSION/EXPERIMENT``. The version is a date of release, ``latest-lts`` (the
        newest release that is kept for years) or ``latest`` (the newest weekly one). The experiment is ``homo_sapiens``
        or ``mus_musculus``.
    organism
        Decides the experiment where the path does not name one.
    releases
        The directory of releases: what each version is, and aliases.

    Returns
    -------
    tuple
        Date of the release, and the URI of the experiment.

    Raises
    ------
    ConfigError
        The path names no release, or no experiment.
    SourceError
        The release was retracted, or the directory is not what it is expected to be.
    """
    version, _, experiment = path.removeprefix(PREFIX).partition("/")
    experiment = experiment or ORGANISMS.get(organism, "")
    if not experiment:
        raise ConfigError(
            "The Census has an experiment for each organism.",
            where=path,
            fix=f"Set `organism`, or write {PREFIX}{version}/homo_sapiens.",
        )
    name, seen = _ALIASES.get(version, version), set[str]()
    while isinstance(releases.get(name), str) and name not in seen:
        seen.add(name)
        name = releases[name]
    release = releases.get(name)
    if not isinstance(release, dict):
        dated = sorted(key for key, value in releases.items() if isinstance(value, dict))
        raise ConfigError(
            f"The Census has no version {version!r}.", where=path, fix=f"There are: latest-lts, {', '.join(dated)}."
        )
    if retraction := release.get("retraction"):
        instead = retraction.get("replaced_by")
        raise SourceError(
            f"The Census version {version} was retracted: {retraction.get('reason', 'no reason is given')}",
            where=path,
            fix=f"Use {PREFIX}{instead}." if instead else "Use census:latest-lts.",
        )
    try:
        date, uri = str(release["release_build"]), str(release["soma"]["uri"])
    except (KeyError, TypeError) as error:
        raise SourceError(f"The directory of Census releases has no {error} for {name}.", where=path) from error
    return date, f"{uri.rstrip('/')}/census_data/{experiment}"


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
                fix="Name the release's experiment by its s3:// URL, or set `census_directory` to a file.",
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
