"""Columns of Arrow for pandas."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pyarrow as pa

_NULLABLE = {pa.bool_(): pd.BooleanDtype()} | {
    kind: getattr(pd, f"{'UInt' if pa.types.is_unsigned_integer(kind) else 'Int'}{kind.bit_width}Dtype")()
    for kind in (pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64())
}


def pandas_array(column: pa.ChunkedArray) -> Any:
    """Return a column for pandas; integers and booleans with gaps stay what they are."""
    return column.to_pandas(types_mapper=_NULLABLE.get if column.null_count else None).array
