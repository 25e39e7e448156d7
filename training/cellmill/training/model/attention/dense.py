"""Prompt attention with a dense boolean mask: the reference, and the way for every other device and dtype."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from cellmill.training.model.attention.heads import split_heads
from cellmill.training.model.layout import QueryPlan, Rectangle


def dense_attention(projection: Tensor, query: Tensor | None, plan: QueryPlan, n_heads: int) -> Tensor:
    """Attention over perceptual keys and the own key; see :func:`prompt_attention` for the arguments.

    Cells are padded to the longest one and every pair of tokens has an entry in the mask, so memory grows with
    the square of the longest cell.
    """
    q, k, v = split_heads(projection, query, n_heads)
    if not plan.n_queries:
        return q.flatten(1)
    at = plan.rectangle
    tokens = at.token_rows
    q, k, v = (x[rows].transpose(1, 2) for x, rows in ((q, at.query_rows), (k, tokens), (v, tokens)))
    out = scaled_dot_product_attention(q, k, v, attn_mask=_allowed(at)[:, None])
    return out.transpose(1, 2).flatten(0, 1)[at.query_slots].flatten(1)


def _allowed(at: Rectangle) -> Tensor:
    """Return which token each query may see, bool ``[cells, n_query, n_token]``."""
    device = at.token_rows.device
    key = torch.arange(at.token_rows.shape[1], device=device)
    slot = torch.arange(at.query_rows.shape[1], device=device)
    perceptual = key < at.n_pcpt
    # The last n_own queries of a cell are its last tokens.
    generative = slot >= at.first_own
    own = ((slot + at.shift)[:, :, None] == key) & generative[:, :, None]
    return perceptual[:, None, :] | own
