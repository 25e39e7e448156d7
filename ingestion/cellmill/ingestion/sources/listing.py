"""What is directly in a folder, on this machine or in an object store."""

from __future__ import annotations

import os

from cellmill.ingestion.sources.object_file import asked
from cellmill.ingestion.sources.place import Place
from cellmill.ingestion.sources.remote import is_web


def children(folder: Place) -> list[str]:
    """Return the names in a folder, sorted; folders of web servers cannot be listed and seem empty.

    Raises
    ------
    SourceError
        The store does not answer.
    """
    if folder.is_local:
        return sorted(os.listdir(folder.local_path()))
    if is_web(folder.location) or folder.is_opaque:
        return []
    listed = asked(folder.storage.store.list_with_delimiter, folder.url)
    paths = [*listed["common_prefixes"], *(item["path"] for item in listed["objects"])]
    return sorted(path.rstrip("/").rpartition("/")[2] for path in paths)
