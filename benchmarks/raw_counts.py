"""Raw counts in place of tokens: a block as it was read, as CSR."""

from __future__ import annotations

from typing import Any

import numpy as np

from cellmill.memory import Memory
from cellmill.tokens import CellBlock, PackedBatch, TokenConfig, Tokeniser


class RawCounts(Tokeniser):
    """Gives every count of a cell as it is; ``cu_seqlens`` are the row starts, ``gene`` the columns."""

    def __init__(self) -> None:
        super().__init__(TokenConfig())

    def tokenise(self, block: CellBlock, *, memory: Memory | None = None, **_: Any) -> PackedBatch:
        """Return the counts, as 16-bit integers."""
        value = block.count
        if value.dtype != np.uint16:
            value = (memory or Memory()).empty(value.size, np.uint16)
            np.copyto(value, block.count)
        return PackedBatch(
            gene=block.token,
            value=value,
            cu_seqlens=block.indptr.astype(np.int32),
            n_pcpt=np.diff(block.indptr).astype(np.int32),
            cell_id=block.cell_id,
            cls_value=0.0,
            labels=block.labels,
        )
