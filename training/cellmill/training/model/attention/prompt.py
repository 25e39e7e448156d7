"""The one attention operation of the model."""

from __future__ import annotations

from torch import Tensor

from cellmill.training.model.attention.backend import Wanted, describe_backend, kernel
from cellmill.training.model.layout import QueryPlan


def prompt_attention(
    projection: Tensor, query: Tensor | None, plan: QueryPlan, *, n_heads: int, attention: Wanted = "auto"
) -> Tensor:
    """Softmax attention of each query over the perceptual tokens of its cell and, if generative, itself.

    Parameters
    ----------
    projection
        Float ``[tokens, 3 * d]``: q, k and v side by side, heads contiguous inside each. With separate queries
        ``[tokens, 2 * d]``: k and v.
    query
        Float ``[queries, d]`` in the order of the plan, or None to ask for every token.
    plan
        The queries of each cell.
    n_heads
        Number of heads.
    attention
        Which backend to use.

    Returns
    -------
    Tensor
        ``[queries, d]``, before the output projection.
    """
    source = projection if query is None else query
    width = source.shape[-1] // (3 * n_heads if query is None else n_heads)
    backend = describe_backend(projection.device, dtype=projection.dtype, d_head=width, attention=attention)
    return kernel(backend)(projection, query, plan, n_heads)
