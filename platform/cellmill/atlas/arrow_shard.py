"""Reading a shard that lies as an Arrow file: record batches of cells whose lists of genes and counts are checksummed.

The file has the columns ``cell_id``, ``barcode``, ``genes`` (lists of token ids) and ``counts``. Each batch carries the
crc32c of the two lists' values; row starts come from the cells' metadata, so that a run of rows costs only its batches.
"""

from __future__ import annotations

import base64
import json
import threading
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cellmill.atlas.cells import CellsFile
from cellmill.atlas.chunks import Emit
from cellmill.atlas.damaged_entries import DamagedEntriesError
from cellmill.atlas.entry import ShardEntry
from cellmill.atlas.remote_file import RemoteFile
from cellmill.errors import IntegrityError, SourceError
from cellmill.storage import Storage

I64 = npt.NDArray[np.int64]

COLUMNS = ("cell_id", "barcode", "genes", "counts")
ABOUT = b"cellmill"
"""Key of the schema's metadata: JSON with rows of a batch, tokens of the measured features, and their crc32c."""
_FIX = "`cellmill atlas verify` lists what is damaged; restore it from a copy, or export again."


def encode_about(rows: int, tokens: npt.NDArray[np.uint32]) -> bytes:
    """Return the schema's metadata for batches of `rows` cells that have these tokens measured."""
    packed = tokens.astype("<u4").tobytes()
    return json.dumps(
        {"rows": rows, "tokens": base64.b64encode(packed).decode(), "crc32c": google_crc32c.value(packed)}
    ).encode()


class ArrowShard:
    """The parts of a shard that lies as an Arrow file.

    Attributes
    ----------
    indptr : int64 [n_rows + 1]
        Where rows begin.
    tokens : uint32 [n_features]
        The measured features, in the order in which they stand within a row.
    genes, counts
        Token id and count of each entry.
    """

    def __init__(self, storage: Storage, entry: ShardEntry) -> None:
        lengths = CellsFile(storage, entry).read(["n_features"]).column(0).to_numpy()
        self.indptr: I64 = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        reader = _open(storage, entry, 0)
        try:
            about = json.loads(reader.schema.metadata[ABOUT])
            packed = base64.b64decode(about["tokens"], validate=True)
            rows = int(about["rows"])
            whole = (
                rows > 0
                and google_crc32c.value(packed) == about["crc32c"]
                and reader.num_record_batches == -(-entry.n_rows // rows)
            )
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(storage, entry, f"Its description cannot be read: {error!r}.") from error
        if not whole:
            raise damaged(storage, entry, "Its description is not what was written.")
        self.tokens = np.frombuffer(packed, "<u4").astype(np.uint32)
        bounds = [*self.indptr[: entry.n_rows : rows].tolist(), int(self.indptr[-1])]
        self.genes, self.counts = (ArrowArray(storage, entry, name, bounds) for name in COLUMNS[2:])


class ArrowArray:
    """The values of a list column, as one array over all batches.

    Parameters
    ----------
    storage, entry
        The shard.
    name
        The column.
    bounds
        Where the values of each batch begin, and the last of them end.

    Attributes
    ----------
    length, dtype
        Of the array.
    """

    def __init__(self, storage: Storage, entry: ShardEntry, name: str, bounds: Sequence[int]) -> None:
        self._storage, self._entry, self._name = storage, entry, name
        self._bounds = list(bounds)
        self._reader = _open(storage, entry, COLUMNS.index(name))
        self._lock = threading.Lock()
        self.length = self._bounds[-1]
        try:
            self.dtype = np.dtype(self._reader.schema.field(name).type.value_type.to_pandas_dtype())
        except (KeyError, AttributeError, NotImplementedError) as error:
            raise damaged(storage, entry, f"It has no lists {name!r}.") from error

    def read(self, begin: I64, end: I64, emit: Emit) -> None:
        """Read values ``begin[i]`` up to, not including, ``end[i]``, ascending and apart, one after the other.

        Parameters
        ----------
        begin, end : int64 [k]
            Which values.
        emit
            Called with values, and their place among all that are read.

        Raises
        ------
        IntegrityError
            The file is missing, or bytes do not have the checksum they were written with.
        """
        at, number = 0, -1
        values: npt.NDArray[Any] = np.empty(0, self.dtype)
        for low, high in zip(begin.tolist(), end.tolist(), strict=True):
            while low < high:
                if (batch := bisect_right(self._bounds, low) - 1) != number:
                    number, values = batch, self._values(batch)
                first, last = self._bounds[batch : batch + 2]
                part = values[low - first : min(high, last) - first]
                emit(part, slice(at, at + part.size))
                at += part.size
                low += part.size

    def _values(self, number: int) -> npt.NDArray[Any]:
        try:
            with self._lock:
                batch, told = self._reader.get_batch_with_custom_metadata(number)
            batch.validate()
            values: npt.NDArray[Any] = batch.column(0).values.to_numpy(zero_copy_only=True)
            checksum = int(told[self._name])
        except (pa.ArrowException, SourceError, OSError, KeyError, TypeError, ValueError) as error:
            raise self._damaged(number, f"Batch {number} cannot be read: {error}.") from error
        if google_crc32c.value(values) != checksum:
            what = f"The {self._name} of batch {number} do not have the checksum they were written with."
            raise self._damaged(number, what)
        if values.size != self._bounds[number + 1] - self._bounds[number]:
            raise self._damaged(number, f"Batch {number} has not as many {self._name} as its cells.")
        return values

    def _damaged(self, number: int, what: str) -> IntegrityError:
        error = damaged(self._storage, self._entry, what)
        entries = (self._bounds[number], self._bounds[number + 1])
        return DamagedEntriesError(error.what, where=error.where, fix=error.fix, ranges=[entries])


def _open(storage: Storage, entry: ShardEntry, column: int) -> Any:
    """Open the file for one of its columns; only that is read of each batch."""
    try:
        # Not mapped into memory: a file that is cut while it is mapped would end the process.
        if storage.is_local:
            source: Any = pa.OSFile(str(storage.local_path(entry.shard_path)))
        else:
            source = RemoteFile(storage, entry.shard_path)
        return pa.ipc.open_file(source, options=pa.ipc.IpcReadOptions(included_fields=[column], use_threads=False))
    except (pa.ArrowException, SourceError, OSError) as error:
        what = error.what if isinstance(error, SourceError) else f"{error}."
        raise damaged(storage, entry, what) from error


def damaged(storage: Storage, entry: ShardEntry, what: str) -> IntegrityError:
    """Return the error that names the shard."""
    return IntegrityError(f"The shard cannot be read. {what}", where=storage.join(entry.shard_path), fix=_FIX)
