"""Raw counts in place of tokens: cells as they are in the atlas, as the rows of a CSR matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cellmill.tokens.block import CellBlock
from cellmill.tokens.config import TokenConfig
from cellmill.tokens.packed import PackedBatch
from cellmill.tokens.tokeniser import Tokeniser


class RawCounts(Tokeniser):
    """Gives every count of a cell as it is.

    In its batches ``cu_seqlens`` says where rows begin, ``gene`` are the tokens of their columns, and ``value`` are the
    counts, in the smallest type that holds those that were read together.
    """

    def __init__(self) -> None:
        super().__init__(TokenConfig())

    def longest(self, expressed: int, measured: int) -> int:
        """Return the most counts of cells that have no more genes than these; see `Tokeniser.longest`."""
        return expressed

    def tokenise(self, block: CellBlock, **_: Any) -> PackedBatch:
        """Return the counts of a block, in its memory."""
        return raw_batch(block.token, block.count, np.diff(block.indptr), block.cell_id, block.labels)


def raw_batch(
    token: npt.NDArray[Any],
    count: npt.NDArray[Any],
    lengths: npt.NDArray[np.int64],
    cell_id: npt.NDArray[np.uint64],
    labels: dict[str, npt.NDArray[np.int32]],
) -> PackedBatch:
    """Return cells whose entries lie one after the other: `lengths` are the entries of each, int64 [n]."""
    cu_seqlens = np.zeros(lengths.size + 1, np.int32)
    np.cumsum(lengths, out=cu_seqlens[1:])
    return PackedBatch(
        gene=token,
        value=count,
        cu_seqlens=cu_seqlens,
        n_pcpt=lengths.astype(np.int32),
        cell_id=cell_id,
        cls_value=0.0,
        labels=labels,
    )
