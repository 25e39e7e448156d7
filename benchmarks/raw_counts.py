"""Raw counts in place of tokens: the rows of a block in the order that is wanted, as CSR."""

from __future__ import annotations

from typing import Any

import numpy as np

from cellmill.atlas.jit import compiled
from cellmill.tokens import CellBlock, PackedBatch, TokenConfig, Tokeniser


class RawCounts(Tokeniser):
    """Gives every count of a cell as it is; ``cu_seqlens`` are the row starts, ``gene`` the columns."""

    def __init__(self) -> None:
        super().__init__(TokenConfig())

    def tokenise(self, block: CellBlock, *, cells: Any = None, **_: Any) -> PackedBatch:
        """Gather rows."""
        chosen = np.arange(block.n_cells) if cells is None else cells
        starts = np.zeros(chosen.size + 1, np.int32)
        np.cumsum(np.diff(block.indptr)[chosen], out=starts[1:])
        gene, value = np.empty(starts[-1], block.token.dtype), np.empty(starts[-1], np.uint16)
        _gather(block.token, block.count, block.indptr, chosen, starts, gene, value)
        return PackedBatch(
            gene=gene,
            value=value,
            cu_seqlens=starts,
            n_pcpt=np.diff(starts),
            cell_id=block.cell_id[chosen],
            cls_value=0.0,
            labels={name: codes[chosen] for name, codes in block.labels.items()},
        )


@compiled
def _gather(token: Any, count: Any, indptr: Any, cells: Any, starts: Any, gene: Any, value: Any) -> None:
    for i in range(cells.size):
        begin, end = indptr[cells[i]], indptr[cells[i] + 1]
        # Views, because an index that could be negative costs a test for each element.
        from_token, from_count = token[begin:end], count[begin:end]
        to_gene, to_value = gene[starts[i] : starts[i + 1]], value[starts[i] : starts[i + 1]]
        for j in range(from_token.size):
            to_gene[j] = from_token[j]
        for j in range(from_count.size):
            to_value[j] = from_count[j]
