"""Which rows of a shard fulfil a predicate, each compared as the kind of value that its source has."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cellmill.atlas.entry import ShardEntry
from cellmill.atlas.part_rows import part_of_rows
from cellmill.atlas.predicate import Predicate
from cellmill.storage import Storage


def mask_of(predicate: Predicate, storage: Storage, entry: ShardEntry, table: pa.Table) -> npt.NDArray[np.bool_]:
    """Return which rows of a shard fulfil a predicate: bool [n_rows].

    A column that is numbers in one source and text in another is text in a compacted shard. Rows are compared as what
    their source has, as they were before.

    Parameters
    ----------
    predicate
        What to fulfil.
    storage, entry
        The shard.
    table
        The predicate's columns of all rows.

    Raises
    ------
    ConfigError
        A column is compared with a value of another kind.
    """
    own = [{name: kind for name, kind in part.types.items() if name in predicate.columns} for part in entry.sources]
    if not any(own):
        return np.asarray(predicate.mask(table))
    part = part_of_rows(storage, entry)
    found = np.zeros(entry.n_rows, bool)
    for types in {tuple(sorted(some.items())): some for some in own}.values():
        rows = np.flatnonzero(np.isin(part, [number for number, some in enumerate(own) if some == types]))
        some = table.take(pa.array(rows))
        for name, kind in types.items():
            at = some.schema.get_field_index(name)
            some = some.set_column(at, name, pc.cast(some.column(name), pa.type_for_alias(kind)))
        found[rows] = np.asarray(predicate.mask(some))
    return found
