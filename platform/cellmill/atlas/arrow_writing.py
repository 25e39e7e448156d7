"""Writing a shard as an Arrow file; see `cellmill.atlas.arrow_shard` for what it holds."""

from __future__ import annotations

from pathlib import Path

import google_crc32c
import numpy as np
import pyarrow as pa

from cellmill.atlas.arrow_shard import ABOUT, COLUMNS, encode_about
from cellmill.atlas.layout import CHUNK
from cellmill.atlas.shard import Shard

_BATCHES = 16
"""Batches that are gathered at once."""


def write_arrow(path: Path, shard: Shard, cells: pa.Table) -> None:
    """Write the rows of a shard, in order, as an uncompressed Arrow file.

    Parameters
    ----------
    path
        Where to.
    shard
        What to write.
    cells
        Its rows' ``cell_id`` and ``barcode``.
    """
    entry = shard.entry
    # About as many entries as a chunk of the other layout has: a run of rows reads as little that it does not need.
    rows = max(1, min(CHUNK * entry.n_rows // max(entry.nnz, 1), 1 << 16, (1 << 31) // max(entry.max_features, 1) - 1))
    tokens = shard.tokens.astype(np.uint16 if entry.vocabulary_size <= 1 << 16 else np.uint32)
    kinds = (pa.uint64(), pa.string(), pa.list_(pa.from_numpy_dtype(tokens.dtype)), None)
    counts_kind = pa.list_(pa.from_numpy_dtype(shard.count_dtype))
    fields = [(name, kind or counts_kind) for name, kind in zip(COLUMNS, kinds, strict=True)]
    schema = pa.schema(fields, metadata={ABOUT: encode_about(rows, shard.tokens)})
    cells = cells.select(COLUMNS[:2]).cast(pa.schema(fields[:2])).combine_chunks()
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for start in range(0, entry.n_rows, rows * _BATCHES):
            stop = min(start + rows * _BATCHES, entry.n_rows)
            columns, counts, indptr = shard.gather([start], [stop])
            genes = tokens[columns]
            for low in range(start, stop, rows):
                high = min(low + rows, stop)
                starts = indptr[low - start : high - start + 1]
                offsets = pa.array((starts - starts[0]).astype(np.int32))
                values = {"genes": genes[starts[0] : starts[-1]], "counts": counts[starts[0] : starts[-1]]}
                lists = [pa.ListArray.from_arrays(offsets, pa.array(part)) for part in values.values()]
                names = [column.combine_chunks() for column in cells.slice(low, high - low).columns]
                told = {name: str(google_crc32c.value(part.tobytes())) for name, part in values.items()}
                writer.write_batch(pa.record_batch([*names, *lists], schema=schema), custom_metadata=told)
