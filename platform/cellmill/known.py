"""Whether anything here knows a name, so that one nobody has heard of is not answered for."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from cellmill.atlas import Atlas, Snapshot
from cellmill.errors import CellmillError
from cellmill.lineage import Lineage

_LEAST_PREFIX = 6


def folders(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield the folders below one, with the names of their files; what is hidden and stores of Zarr are left out."""
    for folder, below, files in os.walk(root):
        below[:] = sorted(name for name in below if not name.startswith(".") and not name.endswith(".zarr"))
        yield Path(folder), sorted(files)


def is_digest(text: str, digest: str) -> bool:
    """Return whether a text is a digest, or a beginning of it that is long enough to mean it."""
    return len(text) >= _LEAST_PREFIX and digest.startswith(text.lower())


def is_in_an_atlas(name: str, lineages: Iterable[Lineage], root: Path) -> bool:
    """Return whether an atlas holds or held a data set or source of a name.

    Parameters
    ----------
    name
        Of a data set; URL or digest (or its beginning) of a source.
    lineages
        Their snapshots say which atlases are asked.
    root
        Atlases below it are asked as well. One that cannot be opened knows nothing.
    """
    nodes = (node for lineage in lineages for node in lineage.walk())
    urls = dict.fromkeys(node.location for node in nodes if node.kind == "snapshot")
    urls |= dict.fromkeys(str(folder) for folder, files in folders(root) if "atlas.json" in files)
    return any(
        part.dataset == name or part.source_url == name or is_digest(name, part.source_digest)
        for url in urls
        for snapshot in _snapshots(url)
        for entry in snapshot.shards
        for part in entry.sources
    )


def _snapshots(url: str) -> Iterator[Snapshot]:
    """Yield the snapshots of an atlas that can still be read, the newest first."""
    try:
        atlas = Atlas.open(url)
        versions = sorted((line.version for line in atlas.log()), reverse=True)
    except CellmillError:
        return
    for version in versions:
        try:
            yield atlas.snapshot(version)
        except CellmillError:
            continue
