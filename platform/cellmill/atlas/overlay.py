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
from cellmill.errors import IntegrityError
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
    pq.write_table(pa.table({"row": rows, "hidden": hidden}), sink, compression="zstd")
    storage.put_if_absent(f"overlays/{dataset}/{digest}.parquet", sink.getvalue())
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
    return _read(storage.url, entry.overlay_path, entry.overlay)


@lru_cache(maxsize=1024)
def _read(url: str, path: str, digest: str) -> Overlay:
    storage = Storage.open(url)
    try:
        table = pq.read_table(BytesIO(storage.get(path)), use_threads=False)
        rows, hidden = table.column("row").to_numpy(), table.column("hidden").to_numpy()
    except (pa.ArrowException, KeyError, OSError) as error:
        raise IntegrityError(f"An overlay cannot be read: {error}.", where=storage.join(path)) from error
    if hashlib.sha256(rows.tobytes() + hidden.tobytes()).hexdigest()[:32] != digest:
        raise IntegrityError("An overlay is not what the catalog names.", where=storage.join(path))
    return Overlay(rows[hidden], rows[~hidden])
