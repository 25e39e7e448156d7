"""How the tokens of a batch lie in memory, and which of them ask questions of which.

Tokens of a cell lie side by side, perceptual ones first (``<cls>`` leading), generative ones last. Every query
attends to the perceptual tokens of its cell; a generative query attends to itself as well. The last layer of a
model need not ask for every token, so there are three sets of queries:

``all``      every token
``targets``  ``<cls>`` and the generative tokens
``cell``     ``<cls>`` alone
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cellmill.training.model.moving import Movable

Queries = Literal["all", "targets", "cell"]
KernelName = Literal["flash-cpu", "flash-cuda", "sdpa"]
Ints = npt.NDArray[np.int64]

# One more kernel call costs about as much as this many query-key pairs (measured on CPU).
_CALL_IN_PAIRS = 32_768


@dataclass(frozen=True, eq=False)
class Padding:
    """Index tensors that pad the cells of one bucket to equal length and bring them back."""

    query_rows: Tensor
    """int64 ``[cells * n_query]``: row of the query array for each padded slot."""
    query_slots: Tensor
    """int64 ``[queries]``: padded slot of each real query, in order."""
    key_rows: Tensor
    """int64 ``[cells * n_key]``: row of the token array for each padded key."""
    key_slots: Tensor
    """int64 ``[keys]``: padded slot of each real key, in order."""
    real_key_rows: Tensor
    """int64 ``[keys]``: row of the token array of each real key."""
    key_is_real: Tensor
    """bool ``[cells, n_key]``."""
    own_queries: Tensor
    """int64 ``[generative queries]``: rows of the query array."""
    own_tokens: Tensor
    """int64 ``[generative queries]``: rows of the token array."""


@dataclass(frozen=True, eq=False)
class Bucket:
    """Consecutive cells that one kernel call handles; without ``padding`` they all have the same shape."""

    n_cells: int
    n_query: int
    n_key: int
    n_own: int
    query: slice
    tokens: slice
    padding: Padding | None


@dataclass(frozen=True, eq=False)
class Segments:
    """Offsets for variable-length kernels.

    Keys and values stay strided views over all tokens: every second segment has no query and covers the
    generative tokens of a cell, so that key segments tile the token array without a copy.
    """

    query_offsets: Tensor
    key_offsets: Tensor
    max_query: int
    max_key: int


@dataclass(frozen=True, eq=False)
class Rectangle:
    """Index tensors that pad all cells to one shape, for attention with a mask over every pair of tokens."""

    query_rows: Tensor
    """int64 ``[cells, n_query]``: row of the query array for each padded slot."""
    query_slots: Tensor
    """int64 ``[queries]``: padded slot of each real query, in order."""
    token_rows: Tensor
    """int64 ``[cells, n_token]``: row of the token array for each padded token."""
    n_pcpt: Tensor
    """int64 ``[cells, 1]``: perceptual tokens."""
    first_own: Tensor
    """int64 ``[cells, 1]``: slot of the first query that has a key of its own."""
    shift: Tensor
    """int64 ``[cells, 1]``: place of a query with a key of its own among the tokens of the cell, less its slot."""


class QueryPlan(Movable):
    """One set of queries over the tokens of a batch.

    Parameters
    ----------
    n_query, n_own
        int64 ``[cells]``: queries of each cell, and how many of them (the last ones) have their own key.
    length, n_pcpt
        int64 ``[cells]``: tokens and perceptual tokens of each cell.
    groups
        Boundaries of the buckets in cells, ``[0, ..., cells]``.
    device
        Where index tensors are put.
    """

    def __init__(
        self, n_query: Ints, n_own: Ints, length: Ints, n_pcpt: Ints, groups: list[int], device: torch.device
    ) -> None:
        self.n_query, self.n_own, self.length, self.n_pcpt = n_query, n_own, length, n_pcpt
        self.query_start = _starts(n_query)
        self.token_start = _starts(length)
        self.n_queries = int(self.query_start[-1])
        self.groups = groups
        self.device = device

    @cached_property
    def has_own(self) -> bool:
        """Whether any query has a key of its own."""
        return bool(self.n_own.any())

    @cached_property
    def first(self) -> Tensor:
        """Row of ``<cls>`` of each cell in the query array, int64 ``[cells]``."""
        return self._index(self.query_start[:-1])

    @cached_property
    def own(self) -> tuple[Tensor, Tensor]:
        """Rows of generative queries in the query array and in the token array, int64."""
        return self._own(0, len(self.length))

    @cached_property
    def unseen(self) -> Tensor | None:
        """Rows of tokens that are nobody's key, int64, or None: generative tokens that ask nothing."""
        count = self.length - self.n_pcpt - self.n_own
        return self._index(ranges(self.token_start[:-1] + self.n_pcpt, count)) if count.any() else None

    @cached_property
    def buckets(self) -> list[Bucket]:
        """Groups of cells for kernels that want a rectangle."""
        return [self._bucket(a, b) for a, b in zip(self.groups, self.groups[1:], strict=False)]

    @cached_property
    def rectangle(self) -> Rectangle:
        """All cells as one rectangle."""
        query_rows, query_real = pad_rows(self.query_start[:-1], self.n_query)
        token_rows, _ = pad_rows(self.token_start[:-1], self.length)
        return Rectangle(
            query_rows=self._index(query_rows),
            query_slots=self._index(np.flatnonzero(query_real)),
            token_rows=self._index(token_rows),
            n_pcpt=self._index(self.n_pcpt[:, None]),
            first_own=self._index((self.n_query - self.n_own)[:, None]),
            shift=self._index((self.length - self.n_query)[:, None]),
        )

    @cached_property
    def segments(self) -> Segments:
        """Offsets for variable-length kernels, int32 ``[2 * cells + 1]``."""
        n = len(self.length)
        query = np.empty(2 * n + 1, np.int64)
        key = np.empty(2 * n + 1, np.int64)
        query[0::2], key[0::2] = self.query_start, self.token_start
        query[1::2], key[1::2] = self.query_start[1:], self.token_start[:-1] + self.n_pcpt
        return Segments(
            query_offsets=self._index(query).int(),
            key_offsets=self._index(key).int(),
            max_query=int(self.n_query.max(initial=0)),
            max_key=int(np.maximum(self.n_pcpt, self.length - self.n_pcpt).max(initial=0)),
        )

    def _bucket(self, first: int, last: int) -> Bucket:
        n_query, n_key, n_own = (a[first:last] for a in (self.n_query, self.n_pcpt, self.n_own))
        same = all(bool((a == a[0]).all()) for a in (n_query, n_key, n_own, self.length[first:last]))
        return Bucket(
            n_cells=last - first,
            n_query=int(n_query.max()),
            n_key=int(n_key.max()),
            n_own=int(n_own.max()),
            query=slice(int(self.query_start[first]), int(self.query_start[last])),
            tokens=slice(int(self.token_start[first]), int(self.token_start[last])),
            padding=None if same else self._padding(first, last),
        )

    def _own(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        own = self.n_own[first:last]
        queries = ranges(self.query_start[first + 1 : last + 1] - own, own)
        tokens = ranges(self.token_start[first:last] + self.n_pcpt[first:last], own)
        return self._index(queries), self._index(tokens)

    def _padding(self, first: int, last: int) -> Padding:
        query_rows, query_real = pad_rows(self.query_start[first:last], self.n_query[first:last])
        key_rows, key_real = pad_rows(self.token_start[first:last], self.n_pcpt[first:last])
        own_queries, own_tokens = self._own(first, last)
        return Padding(
            query_rows=self._index(query_rows.ravel()),
            query_slots=self._index(np.flatnonzero(query_real)),
            key_rows=self._index(key_rows.ravel()),
            key_slots=self._index(np.flatnonzero(key_real)),
            real_key_rows=self._index(key_rows[key_real]),
            key_is_real=torch.from_numpy(key_real).to(self.device),
            own_queries=own_queries,
            own_tokens=own_tokens,
        )

    def _index(self, values: Ints) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, np.int64)).to(self.device, non_blocking=True)


class Layout(Movable):
    """Lengths of the cells of a batch and the query plans over them.

    Parameters
    ----------
    length
        int64 ``[cells]``: tokens of each cell, at least one; equal shapes should stand side by side.
    n_pcpt
        int64 ``[cells]``: perceptual tokens of each cell, ``<cls>`` included, at least one.
    device
        Where index tensors are put.
    """

    def __init__(self, length: Ints, n_pcpt: Ints, device: torch.device) -> None:
        self.length, self.n_pcpt, self.device = length, n_pcpt, device
        self.n_cells = len(length)
        self.n_tokens = int(length.sum())
        self.n_generative = self.n_tokens - int(n_pcpt.sum())
        self._plans: dict[Queries, QueryPlan] = {}

    def plan(self, queries: Queries) -> QueryPlan:
        """Return the plan for one set of queries; it is made once per batch."""
        if queries not in self._plans:
            self._plans[queries] = self._make(queries)
        return self._plans[queries]

    def prepare(self, queries: Queries, kernel: KernelName) -> None:
        """Make the index tensors of a model's pass, so that they can be moved with the batch.

        Parameters
        ----------
        queries
            Of the last layer; the others ask for every token.
        kernel
            What will compute attention.
        """
        for name in dict.fromkeys(("all", queries)):
            plan = self.plan(name)
            _ = plan.first, plan.own
            if kernel == "flash-cpu":
                _ = plan.buckets
            elif kernel == "flash-cuda":
                _ = plan.segments, plan.unseen
            elif plan.n_queries:
                _ = plan.rectangle
        _ = self.cls_rows, self.query_rows(queries)

    @cached_property
    def cls_rows(self) -> Tensor:
        """Row of ``<cls>`` of each cell, int64 ``[cells]``."""
        return self._index(_starts(self.length)[:-1])

    def query_rows(self, queries: Queries) -> Tensor | None:
        """Return the token row of each query, int64, or None for ``all``."""
        if queries == "all":
            return None
        return self.cls_rows if queries == "cell" else self._target_query_rows

    @cached_property
    def _target_query_rows(self) -> Tensor:
        start = _starts(self.length)
        own = self.length - self.n_pcpt
        rows = ranges(start[:-1] + self.n_pcpt - 1, own + 1)
        rows[_starts(own + 1)[:-1]] = start[:-1]
        return self._index(rows)

    @cached_property
    def _groups(self) -> list[int]:
        return group_cells(self.length, self.n_pcpt)

    def _make(self, queries: Queries) -> QueryPlan:
        own = self.length - self.n_pcpt
        if queries == "all":
            n_query, n_own = self.length, own
        elif queries == "targets":
            n_query, n_own = own + 1, own
        else:
            n_query, n_own = np.ones_like(own), np.zeros_like(own)
        return QueryPlan(n_query, n_own, self.length, self.n_pcpt, self._groups, self.device)

    def _index(self, values: Ints) -> Tensor:
        return torch.from_numpy(values).to(self.device, non_blocking=True)


def group_cells(length: Ints, n_pcpt: Ints) -> list[int]:
    """Cut cells into consecutive groups, each handled by one kernel call.

    Neighbouring runs of equal shape are joined while the padding that this brings costs less than a call.

    Parameters
    ----------
    length, n_pcpt
        int64 ``[cells]``.

    Returns
    -------
    list of int
        Boundaries ``[0, ..., cells]``; ``[0]`` for no cells.
    """
    if not len(length):
        return [0]
    bounds = [0]
    size, most_queries, most_keys = 0, 0, 0
    for count, queries, keys in _runs(length, n_pcpt):
        joined = (size + count) * max(most_queries, queries) * max(most_keys, keys)
        apart = size * most_queries * most_keys + count * queries * keys + _CALL_IN_PAIRS
        if size and joined > apart:
            bounds.append(bounds[-1] + size)
            size, most_queries, most_keys = 0, 0, 0
        size += count
        most_queries, most_keys = max(most_queries, queries), max(most_keys, keys)
    bounds.append(bounds[-1] + size)
    return bounds


def ranges(start: Ints, count: Ints) -> Ints:
    """Concatenate ``start[i] + arange(count[i])`` over all i.

    >>> ranges(np.array([5, 20]), np.array([2, 3])).tolist()
    [5, 6, 20, 21, 22]
    """
    ends = np.cumsum(count)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(start - (ends - count), count) + np.arange(total)


def _runs(length: Ints, n_pcpt: Ints) -> Iterator[tuple[int, int, int]]:
    change = np.flatnonzero((length[1:] != length[:-1]) | (n_pcpt[1:] != n_pcpt[:-1])) + 1
    first = np.concatenate([[0], change])
    count = np.diff(np.concatenate([first, [len(length)]]))
    yield from zip(count.tolist(), length[first].tolist(), n_pcpt[first].tolist(), strict=True)


def _starts(count: Ints) -> Ints:
    return np.concatenate([[0], np.cumsum(count)]).astype(np.int64)


def pad_rows(start: Ints, count: Ints) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """Return row numbers ``[cells, longest]`` of padded cells and where they are real.

    A padded slot repeats the first row of its cell: any finite row will do there.
    """
    position = np.arange(int(count.max()))
    real = position < count[:, None]
    return np.where(real, start[:, None] + position, start[:, None]), real
