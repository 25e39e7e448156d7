"""Small blocks of cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cellmill.tokens import CellBlock


def block_of(
    cells: Sequence[Sequence[float]], dtype: Any = np.uint8, *, ids: Sequence[int] | None = None, first: int = 8
) -> CellBlock:
    """Return a block; cell i expresses the tokens from `first` on with these counts."""
    lengths = [len(cell) for cell in cells]
    token = np.array([first + j for n in lengths for j in range(n)], np.uint16)
    count = np.array([x for cell in cells for x in cell], dtype)
    numbers = np.arange(len(cells)) if ids is None else np.asarray(ids)
    return CellBlock(
        token, count, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), numbers.astype(np.uint64)
    )


def random_block(n_cells: int, n_genes: int, seed: int = 0, density: float = 0.3, largest: int = 40) -> CellBlock:
    rng = np.random.default_rng(seed)
    tokens, counts, lengths = [], [], []
    for _ in range(n_cells):
        genes = np.flatnonzero(rng.random(n_genes) < density)
        tokens.append(genes + 8)
        counts.append(np.minimum(rng.geometric(0.6, genes.size), largest))
        lengths.append(genes.size)
    return CellBlock(
        np.concatenate(tokens).astype(np.uint16),
        np.concatenate(counts).astype(np.uint8),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        rng.integers(0, 1 << 62, n_cells).astype(np.uint64),
    )


def values_of(packed: Any, cell: int) -> dict[int, Any]:
    """Return token to value of a cell, without <cls>."""
    start, stop = packed.cu_seqlens[cell] + 1, packed.cu_seqlens[cell + 1]
    return dict(zip(packed.gene[start:stop].tolist(), packed.value[start:stop].tolist(), strict=True))


def permuted(block: CellBlock, seed: int) -> CellBlock:
    """Return the block with the entries of each cell in another order."""
    rng = np.random.default_rng(seed)
    order: npt.NDArray[np.int64] = np.concatenate(
        [rng.permutation(np.arange(a, b)) for a, b in zip(block.indptr[:-1], block.indptr[1:], strict=True)]
    )
    return CellBlock(block.token[order], block.count[order], block.indptr, block.cell_id)
