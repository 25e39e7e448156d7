"""Views of a fused projection as queries, keys and values, and gradients laid out the same way."""

from __future__ import annotations

from torch import Tensor


def split_heads(projection: Tensor, query: Tensor | None, n_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return q, k and v as strided views ``[rows, heads, d_head]``.

    Parameters
    ----------
    projection
        ``[tokens, 3 * d]`` holding q, k and v, or ``[tokens, 2 * d]`` holding k and v when `query` is given.
    query
        ``[queries, d]`` or None.
    n_heads
        Number of heads.
    """
    parts = projection.unflatten(-1, (3 if query is None else 2, n_heads, -1))
    if query is None:
        q, k, v = parts.unbind(1)
        return q, k, v
    k, v = parts.unbind(1)
    return query.unflatten(-1, (n_heads, -1)), k, v


def by_cell(x: Tensor, n_cells: int) -> Tensor:
    """Return rows ``[n_cells * rows, ...]`` as a view ``[n_cells, rows, ...]``."""
    return x.view(n_cells, x.shape[0] // n_cells, *x.shape[1:])


def empty_grads(projection: Tensor, query: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return uninitialised gradients of a projection and of separate queries."""
    return projection.new_empty(projection.shape), None if query is None else query.new_empty(query.shape)
