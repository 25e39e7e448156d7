"""Packed batches for tests, made by hand instead of by the tokeniser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Pack:
    gene: Array
    value: Array
    is_gen: Array
    cu_seqlens: Array
    n_pcpt: Array
    cell_id: Array
    condition: Array | None = None
    masked: Array | None = None
    labels: Mapping[str, Array] = field(default_factory=dict)
    cls_value: float = -2.0

    def cell(self, i: int) -> slice:
        return slice(int(self.cu_seqlens[i]), int(self.cu_seqlens[i + 1]))

    def select(self, cells: Sequence[int]) -> Pack:
        rows = np.array([row for i in cells for row in range(self.cell(i).start, self.cell(i).stop)], np.int64)
        return replace(
            self,
            gene=self.gene[rows],
            value=self.value[rows],
            is_gen=self.is_gen[rows],
            condition=None if self.condition is None else self.condition[rows],
            masked=None if self.masked is None else self.masked[rows],
            cu_seqlens=np.concatenate([[0], np.cumsum(np.diff(self.cu_seqlens)[list(cells)])]).astype(np.int32),
            n_pcpt=self.n_pcpt[list(cells)],
            cell_id=self.cell_id[list(cells)],
            labels={name: ids[list(cells)] for name, ids in self.labels.items()},
        )

    def permute(self, rows: Array) -> Pack:
        return replace(self, gene=self.gene[rows], value=self.value[rows])


def make_pack(shapes: Sequence[tuple[int, int]], *, n_tokens: int = 40, seed: int = 0, binned: bool = True) -> Pack:
    """Make random cells with the given (perceptual, generative) token counts."""
    rng = np.random.default_rng(seed)
    n_pcpt = np.array([p for p, _ in shapes], np.int32)
    length = np.array([p + g for p, g in shapes], np.int64)
    cu = np.concatenate([[0], np.cumsum(length)]).astype(np.int32)
    total = int(cu[-1])
    gene = rng.integers(8, n_tokens, total).astype(np.uint16)
    value = rng.integers(1, 51, total).astype(np.uint8)
    is_gen = np.concatenate([np.arange(p + g) >= p for p, g in shapes] or [np.zeros(0, bool)])
    gene[cu[:-1]], value[cu[:-1]] = 1, 0
    return Pack(
        gene=gene,
        value=value if binned else np.log1p(value).astype(np.float32),
        is_gen=is_gen,
        cu_seqlens=cu,
        n_pcpt=n_pcpt,
        cell_id=rng.integers(0, 2**63, len(shapes)).astype(np.uint64),
    )
