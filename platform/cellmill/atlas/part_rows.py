"""Which rows of a shard are of which source, and what follows for the shard's row of the catalog."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cellmill.atlas.cells import CellsFile
from cellmill.atlas.entry import ShardEntry
from cellmill.atlas.overlay import Overlay, write_overlay
from cellmill.atlas.part import Part, encode_parts
from cellmill.errors import IntegrityError
from cellmill.storage import Storage

I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def part_of_rows(storage: Storage, entry: ShardEntry) -> I64:
    """Return the place among ``entry.sources`` of each row's source: int64 [n_rows].

    Raises
    ------
    IntegrityError
        A row is of a source that the catalog does not name.
    """
    if not entry.parts:
        return np.zeros(entry.n_rows, np.int64)
    found = parts_of_cells(CellsFile(storage, entry).read(["dataset", "source_digest"]), entry.sources)
    if found.min(initial=0) < 0:
        raise IntegrityError(
            "Cells are of a source that the catalog does not name.", where=storage.join(entry.cells_path)
        )
    return found


def parts_of_cells(cells: pa.Table, parts: Iterable[Part]) -> I64:
    """Return the place among some parts of each cell's source, -1 for none: int64 [n]."""
    keys = pc.binary_join_element_wise(
        cells["dataset"].cast(pa.string()), cells["source_digest"].cast(pa.string()), "/"
    )
    found = pc.index_in(keys, value_set=pa.array(["/".join(part.key) for part in parts], pa.string()))
    places: I64 = pc.fill_null(found, -1).to_numpy().astype(np.int64)
    return places


def count_parts(storage: Storage, entry: ShardEntry, rows: Mask) -> list[tuple[Part, int]]:
    """Return how many of some rows are of each source; sources that none is of are left out.

    Parameters
    ----------
    storage, entry
        The shard.
    rows : bool [n_rows]
        Which rows.
    """
    if not entry.parts:
        n = int(rows.sum())
        return [(entry.sources[0], n)] if n else []
    counts = np.bincount(part_of_rows(storage, entry)[rows], minlength=len(entry.sources)).tolist()
    return [(part, n) for part, n in zip(entry.sources, counts, strict=True) if n]


def overlaid(storage: Storage, entry: ShardEntry, overlay: Overlay) -> ShardEntry:
    """Write an overlay, and return the shard's row of the catalog with it."""
    name = write_overlay(storage, entry.dataset, overlay)
    update = {"overlay": name, "n_cells": entry.n_rows - int(overlay.hidden.size)}
    if not entry.parts:
        return entry.model_copy(update=update)
    shown = np.bincount(part_of_rows(storage, entry)[overlay.mask(entry.n_rows)], minlength=len(entry.sources))
    parts = [part.model_copy(update={"n_cells": n}) for part, n in zip(entry.sources, shown.tolist(), strict=True)]
    return entry.model_copy(update={**update, "parts": encode_parts(parts)})
