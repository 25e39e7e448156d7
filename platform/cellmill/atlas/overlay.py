"""Overlays: rows of a shard that a snapshot hides or marks. The shard itself never changes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cellmill.atlas.entry import ShardEntry
from cellmill.errors import IntegrityError, SourceError
from cellmill.seal import EMPTY_SEAL, is_sealed, seal
from cellmill.storage import Storage


@dataclass(frozen=True)
class Overlay:
    """Rows of one shard that are not as the shard has them.

    Parameters
    ----------
    hidden : uint32[k]
        Rows that the snapshot does not have, ascending.
    duplicate : uint32[m]
        Rows that the snapshot has, though the same cell came earlier, ascending.
    """

    hidden: npt.NDArray[np.uint32]
    duplicate: npt.NDArray[np.uint32]

    def visible(self, n_rows: int) -> npt.NDArray[np.uint32]:
        """Return the rows that the snapshot has, ascending."""
        return np.flatnonzero(self.mask(n_rows)).astype(np.uint32)

    def mask(self, n_rows: int) -> npt.NDArray[np.bool_]:
        """Return which rows the snapshot has."""
        keep = np.ones(n_rows, dtype=bool)
        keep[self.hidden] = False
        return keep


EMPTY = Overlay(np.empty(0, np.uint32), np.empty(0, np.uint32))


def write_overlay(storage: Storage, dataset: str, overlay: Overlay) -> str:
    """Write an overlay and return its digest, the empty one for none."""
    if not overlay.hidden.size and not overlay.duplicate.size:
        return ""
    rows = np.concatenate([overlay.hidden, overlay.duplicate]).astype(np.uint32)
    hidden = np.arange(rows.size) < overlay.hidden.size
    digest = hashlib.sha256(rows.tobytes() + hidden.tobytes()).hexdigest()[:32]
    sink = BytesIO()
    table = pa.table({"row": rows, "hidden": hidden})
    with pq.ParquetWriter(sink, table.schema, compression="zstd") as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({"cellmill": EMPTY_SEAL})
    storage.put_if_absent(f"overlays/{dataset}/{digest}.parquet", seal(sink.getvalue()))
    return digest


def read_overlay(storage: Storage, entry: ShardEntry) -> Overlay:
    """Return the overlay of a shard.

    Raises
    ------
    IntegrityError
        It is damaged, or is not the one the catalog names.
    """
    if not entry.overlay:
        return EMPTY
    return _cached(storage.url, entry.overlay_path, entry.overlay)


def verify_overlay(storage: Storage, entry: ShardEntry) -> Overlay:
    """Return the overlay of a shard as `read_overlay` does, from its bytes as they are now."""
    return _read(storage, entry.overlay_path, entry.overlay) if entry.overlay else EMPTY


@lru_cache(maxsize=1024)
def _cached(url: str, path: str, digest: str) -> Overlay:
    return _read(Storage.open(url), path, digest)


def _read(storage: Storage, path: str, digest: str) -> Overlay:
    try:
        content = storage.get(path)
        if not is_sealed(content):
            raise ValueError("its bytes do not have the checksum they were written with")
        table = pq.ParquetFile(BytesIO(content)).read(use_threads=False)
        rows, hidden = table.column("row").to_numpy(), table.column("hidden").to_numpy()
    except (SourceError, ValueError, pa.ArrowException, KeyError, OSError) as error:
        what = error.what if isinstance(error, SourceError) else f"{error}."
        raise IntegrityError(f"An overlay cannot be read: {what}", where=storage.join(path)) from error
    if hashlib.sha256(rows.tobytes() + hidden.tobytes()).hexdigest()[:32] != digest:
        raise IntegrityError("An overlay is not what the catalog names.", where=storage.join(path))
    return Overlay(rows[hidden], rows[~hidden])
