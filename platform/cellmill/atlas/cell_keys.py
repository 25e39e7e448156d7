"""What cells are equal in: the content hash, and for nearly empty cells the barcode as well."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cellmill.atlas.cells import CellsFile
from cellmill.atlas.content import mix
from cellmill.atlas.entry import ShardEntry
from cellmill.atlas.jit import compiled
from cellmill.errors import IntegrityError
from cellmill.storage import Storage

U64 = npt.NDArray[np.uint64]

COLUMNS = ("content_hash", "barcode")


def shard_keys(storage: Storage, entry: ShardEntry, *more: str) -> tuple[U64, pa.Table]:
    """Return the keys of a shard's cells, by row, and further columns of their metadata.

    Returns
    -------
    uint64 [n_rows, 3]
        The halves of the content hash; and 32 bits of the barcode's hash, above 32 zeros.

    Raises
    ------
    IntegrityError
        A cell has no content hash.
    """
    table = CellsFile(storage, entry).read([*COLUMNS, *more])
    column = table.column("content_hash")
    if column.null_count or column.type != pa.binary(16):
        raise IntegrityError("Cells have no content hash.", where=storage.join(entry.cells_path))
    halves = _fixed(column)
    keys = np.empty((entry.n_rows, 3), np.uint64)
    keys[:, :2] = halves
    keys[:, 2] = text_hashes(table.column("barcode")) & np.uint64(0xFFFFFFFF00000000)
    return keys, table


def text_hashes(column: pa.ChunkedArray) -> U64:
    """Return a hash of each text, uint64 [n]; a missing one is empty."""
    texts = _one(column.cast(pa.large_string()).fill_null(""))
    _, offsets, data = texts.buffers()
    ends = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    text = np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)
    found = np.empty(len(texts), np.uint64)
    _hash_text(ends, text, found)
    return found


def as_items(keys: U64) -> npt.NDArray[np.void]:
    """Return keys as single items, void [n], that can be looked for and made unique."""
    kind = np.dtype([("high", np.uint64), ("low", np.uint64), ("name", np.uint64)])
    items: npt.NDArray[np.void] = np.ascontiguousarray(keys).view(kind).ravel()
    return items


def _fixed(column: pa.ChunkedArray) -> U64:
    array = _one(column)
    raw = np.frombuffer(array.buffers()[1], dtype=">u8", offset=array.offset * 16, count=2 * len(array))
    return raw.astype(np.uint64).reshape(-1, 2)


def _one(column: pa.ChunkedArray) -> pa.Array:
    whole: Any = column.combine_chunks()
    if isinstance(whole, pa.ChunkedArray):
        return pa.concat_arrays(whole.chunks) if whole.num_chunks else pa.array([], whole.type)
    return whole


@compiled
def _hash_text(ends: npt.NDArray[np.int64], text: npt.NDArray[np.uint8], out: U64) -> None:
    """FNV-1a of each text, mixed."""
    for i in range(ends.size - 1):
        state = np.uint64(0xCBF29CE484222325)
        for place in range(ends[i], ends[i + 1]):
            state = (state ^ np.uint64(text[place])) * np.uint64(0x100000001B3)
        out[i] = mix(state)
