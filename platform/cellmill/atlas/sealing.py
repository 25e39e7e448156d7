"""A shard that is complete says so itself: the file of its cells names what the other files are."""

from __future__ import annotations

import time

import pyarrow as pa
import pyarrow.parquet as pq

from cellmill.atlas.cells import write_cells
from cellmill.atlas.chunk_writing import Digests
from cellmill.atlas.entry import ShardEntry
from cellmill.atlas.summary import summarise
from cellmill.atlas.writing import checksum, read_digests, shard_keys
from cellmill.storage import Storage

_ENTRY = b"cellmill.entry"


def seal_shard(
    storage: Storage, draft: ShardEntry, cells: pa.Table, known: Digests, about: dict[bytes, bytes] | None = None
) -> ShardEntry:
    """Write the cells' metadata of a shard, which marks it as complete, and return its row of the catalog.

    Parameters
    ----------
    storage
        The atlas's storage.
    draft
        The row, without what the files' contents decide.
    cells
        The metadata.
    known
        Digests of the other files.
    about
        More for the file to say.
    """
    # The metadata says what the other files are, so that a later run can tell whether they still are.
    draft = draft.model_copy(update={**summarise(cells), "checksum": checksum(storage, known, known)[0]})
    said = {_ENTRY: draft.model_dump_json().encode(), **(about or {})}
    write_cells(storage, draft.cells_path, cells.replace_schema_metadata(said))
    return _sealed(storage, draft, known)


def sealed_shard(storage: Storage, cells_path: str) -> ShardEntry | None:
    """Return the row of a shard that an earlier run completed, committed or not; None unless it is as it was left."""
    if not storage.exists(cells_path):
        return None
    try:
        metadata = pq.read_schema(pa.BufferReader(storage.get(cells_path))).metadata
        draft = ShardEntry.model_validate_json(metadata[_ENTRY])
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
        return None
    known = read_digests(storage, storage.list(draft.shard_path))
    return _sealed(storage, draft, known) if checksum(storage, known, known)[0] == draft.checksum else None


def _sealed(storage: Storage, draft: ShardEntry, known: Digests) -> ShardEntry:
    digest, size = checksum(storage, shard_keys(storage, draft.dataset, draft.digest), known)
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return draft.model_copy(update={"bytes": size, "checksum": digest, "created": created})
