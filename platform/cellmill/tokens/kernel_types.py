"""What the kernels of tokenisation take and give: tuples of arrays, with names."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Source(NamedTuple):
    """A block of cells; see `CellBlock`.

    Attributes
    ----------
    measured, measured_at, measured_set
        Tokens that become zeros where they have no count, one set after the other; where each set begins; and the set
        of each cell. Empty for no zeros.
    """

    token: Any
    count: Any
    indptr: Any
    cell_id: Any
    measured: Any
    measured_at: Any
    measured_set: Any


class Rules(NamedTuple):
    """How cells become tokens.

    Attributes
    ----------
    rank : uint8 [k]
        Rank of each token, `DROPPED` outside the panel; empty if nothing is dropped or ranked.
    other_rank
        Of tokens from k on.
    ranked, zeros_last
        Whether ranks differ among tokens that are kept, and whether zeros are sampled after all others.
    group_of : uint8 [k]
        Modality of each token; empty if there is one.
    fixed : int64 [modalities]
        Value of every token of a binary modality, 0 for one that is binned.
    integers
        Whether counts are integers.
    mode, quantiles, target_sum
        How values are made; quantiles are float64 [n_bins - 1].
    ratios, mask_ratio
        Shares to generate, of which each cell draws one; share to mask.
    seed, epoch
        Keys of chance.
    """

    rank: Any
    other_rank: Any
    ranked: Any
    zeros_last: Any
    group_of: Any
    fixed: Any
    integers: Any
    mode: Any
    quantiles: Any
    target_sum: Any
    ratios: Any
    mask_ratio: Any
    seed: Any
    epoch: Any


class Result(NamedTuple):
    """The channels of a packed batch; `cu_seqlens` is given, `masked` is empty where nothing is masked."""

    cu_seqlens: Any
    gene: Any
    value: Any
    masked: Any
    n_pcpt: Any


class Scratch(NamedTuple):
    """Arrays as long as the longest cell, used again for each; the first four hold its candidates."""

    token: Any
    count: Any
    value: Any
    draw: Any
    sub_count: Any
    sub_value: Any
    sub_draw: Any
    sub_at: Any
    order: Any
    members: Any
    out_token: Any
    out_value: Any
    buckets: Any
    histogram: Any
    table: Any
    levels: Any
    distinct: Any
    ends: Any
    low: Any
    width: Any
    edges: Any
    dense: Any


def make_scratch(source: Source, rules: Rules, result: Result, longest: int) -> Scratch:
    """Return scratch for cells with up to `longest` candidates."""
    size = longest + 2
    token, count, value = source.token.dtype, source.count.dtype, result.value.dtype
    largest = 0
    if source.measured_set.size:
        largest = max(int(source.token.max(initial=0)), int(source.measured.max(initial=0)))
    return Scratch(
        token=np.empty(size, token),
        count=np.empty(size, count),
        value=np.empty(size, value),
        draw=np.empty(size, np.uint64),
        sub_count=np.empty(size, count),
        sub_value=np.empty(size, value),
        sub_draw=np.empty(size, np.uint64),
        sub_at=np.empty(size, np.int64),
        order=np.empty(size, np.uint64),
        members=np.empty(size, np.uint64),
        out_token=np.empty(2 * size, token),
        out_value=np.empty(2 * size, value),
        buckets=np.empty(1024, np.int32),
        histogram=np.empty((4, 256), np.int32),
        table=np.zeros(256, np.uint64),
        levels=np.empty(256, np.float64),
        distinct=np.empty(size, np.int64),
        ends=np.empty(size, np.int64),
        low=np.empty(size, np.uint64),
        width=np.empty(size, np.uint64),
        edges=np.empty(rules.quantiles.size, np.float64),
        dense=np.zeros(largest + 1, np.int64),
    )
