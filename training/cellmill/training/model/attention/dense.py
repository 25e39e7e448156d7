"""Prompt attention with a dense boolean mask: the reference, and the way for every other device and dtype."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from cellmill.training.model.attention.heads import split_heads
from cellmill.training.model.layout import Ints, QueryPlan, pad_rows


def dense_attention(projection: Tensor, query: Tensor | None, plan: QueryPlan, n_heads: int) -> Tensor:
    """Attention over perceptual keys and the own key; see :func:`prompt_attention` for the arguments.

    Cells are padded to the longest one and every pair of tokens has an entry in the mask, so memory grows with
    the square of the longest cell.
    """
    q, k, v = split_heads(projection, query, n_heads)
    if not plan.n_queries:
        return q.flatten(1)
    query_rows, query_real = pad_rows(plan.query_start[:-1], plan.n_query)
    token_rows, _ = pad_rows(plan.token_start[:-1], plan.length)
    device = projection.device
    q_rows, t_rows, real = (torch.from_numpy(x).to(device) for x in (query_rows, token_rows, query_real))
    allowed = _allowed(plan, q_rows.shape[1], t_rows.shape[1], device)
    out = scaled_dot_product_attention(
        q[q_rows].transpose(1, 2), k[t_rows].transpose(1, 2), v[t_rows].transpose(1, 2), attn_mask=allowed[:, None]
    )
    return out.transpose(1, 2)[real].flatten(1)


def _allowed(plan: QueryPlan, n_query: int, n_token: int, device: torch.device) -> Tensor:
    """Return which token each query may see, bool ``[cells, n_query, n_token]``."""
    key = torch.arange(n_token, device=device)
    slot = torch.arange(n_query, device=device)
    perceptual = key < _column(plan.n_pcpt, device)
    # The last n_own queries of a cell are its last tokens.
    generative = slot >= _column(plan.n_query - plan.n_own, device)
    position = slot + _column(plan.length - plan.n_query, device)
    own = (position[:, :, None] == key) & generative[:, :, None]
    return perceptual[:, None, :] | own


def _column(values: Ints, device: torch.device) -> Tensor:
    return torch.from_numpy(values).to(device).unsqueeze(1)
