"""What an atlas knows of an AnnData store whose counts stay where they are: the one file of a linked shard."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cellmill.atlas.entry import ShardEntry
from cellmill.errors import IntegrityError, SourceError
from cellmill.storage import Storage

ARRAYS = ("indptr", "indices", "data")
"""The arrays of a sparse matrix."""
_ABOUT = b"cellmill"
_FIX = "`cellmill atlas verify` lists what is damaged; restore it from a copy, or link the store again."


@dataclass(frozen=True)
class Link:
    """Where a linked shard's counts are, and how they become counts of features.

    Attributes
    ----------
    location
        Path or URL of the store.
    matrix
        The group of the counts in it: a sparse matrix by rows.
    files
        Key and size of each file that has counts of the shard, or says where they are.
    largest
        The largest count of the shard.
    target : int32 [n_in]
        Position of each column's feature, -1 for none.
    binary : bool [n_features]
        Features whose counts are 1.
    tokens : uint32 [n_features]
        Token of each feature.
    keys : uint64 [n_features, 2]
        Of the features, in content hashes.
    """

    location: str
    matrix: str
    files: dict[str, int]
    largest: int
    target: npt.NDArray[np.int32]
    binary: npt.NDArray[np.bool_]
    tokens: npt.NDArray[np.uint32]
    keys: npt.NDArray[np.uint64]

    def to_bytes(self) -> bytes:
        """Return the file: one row of lists, as Arrow."""
        lists = {
            "target": pa.array(self.target),
            "binary": pa.array(self.binary),
            "tokens": pa.array(self.tokens),
            "keys": pa.array(np.ascontiguousarray(self.keys).reshape(-1)),
        }
        offsets = {name: pa.array([0, len(values)], pa.int32()) for name, values in lists.items()}
        table = pa.table({name: pa.ListArray.from_arrays(offsets[name], values) for name, values in lists.items()})
        about = {name: getattr(self, name) for name in ("location", "matrix", "files", "largest")}
        table = table.replace_schema_metadata({_ABOUT: json.dumps(about)})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
            writer.write_table(table)
        return bytes(memoryview(sink.getvalue()))


def read_link(storage: Storage, entry: ShardEntry) -> Link:
    """Read the file of a linked shard.

    Raises
    ------
    IntegrityError
        It is missing or damaged.
    """
    try:
        table = pa.ipc.open_file(pa.BufferReader(storage.get(entry.shard_path))).read_all()
        columns = {name: table[name].combine_chunks().values for name in table.schema.names}
        lists: dict[str, Any] = {name: values.to_numpy(zero_copy_only=False) for name, values in columns.items()}
        return Link(**json.loads(table.schema.metadata[_ABOUT]), **{**lists, "keys": lists["keys"].reshape(-1, 2)})
    except (pa.ArrowException, SourceError, OSError, KeyError, TypeError, ValueError) as error:
        where = storage.join(entry.shard_path)
        raise IntegrityError(f"The shard's link cannot be read: {error!r}.", where=where, fix=_FIX) from error
