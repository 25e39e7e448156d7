"""Prompt attention on torch's built-in variable-length flash kernels for CUDA: one call per batch."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cellmill.training.model.attention import own_key
from cellmill.training.model.attention.heads import empty_grads, split_heads
from cellmill.training.model.layout import QueryPlan


class FlashCUDA(torch.autograd.Function):
    """Attention over perceptual keys and the own key; see :func:`prompt_attention` for the arguments.

    Keys and values are strided views of the projection. Segments without queries cover the generative tokens;
    whatever the kernel writes to their key and value gradients is overwritten.
    """

    @staticmethod
    def forward(ctx: Any, projection: Tensor, query: Tensor | None, plan: QueryPlan, n_heads: int) -> Tensor:
        """Return outputs ``[queries, d]``."""
        q, k, v = split_heads(projection, query, n_heads)
        ctx.plan, ctx.n_heads = plan, n_heads
        if not plan.n_queries:
            ctx.save_for_backward(projection, query)
            return q.new_empty(0, q.shape[1] * q.shape[2])
        scale = q.shape[-1] ** -0.5
        at = plan.segments
        out, lse, random_state, unused, _ = torch.ops.aten._flash_attention_forward(
            q, k, v, at.query_offsets, at.key_offsets, at.max_query, at.max_key, 0.0, False, False, scale=scale
        )
        if lse.shape != (n_heads, plan.n_queries):
            raise RuntimeError(f"log-sum-exp has the shape {tuple(lse.shape)}, not (heads, queries)")
        if plan.has_own:
            queries, tokens = plan.own
            by_query = lse.t()
            own_out, own_lse = out[queries], by_query[queries]
            own_key.merge_(own_out, own_lse, q[queries], k[tokens], v[tokens], scale)
            out[queries], by_query[queries] = own_out, own_lse
        ctx.save_for_backward(projection, query, out, lse, random_state, unused)
        return cast("Tensor", out.flatten(1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        """Return gradients of the projection and of the separate queries."""
        plan: QueryPlan = ctx.plan
        projection, query, *rest = ctx.saved_tensors
        if not rest:
            return *empty_grads(projection, query), None, None
        out, lse, random_state, unused = rest
        at = plan.segments
        q, k, v = split_heads(projection, query, ctx.n_heads)
        scale = q.shape[-1] ** -0.5
        grad_out = grad.unflatten(-1, (ctx.n_heads, -1)).contiguous()
        found = torch.ops.aten._flash_attention_backward(
            grad_out, q, k, v, out, lse, at.query_offsets, at.key_offsets, at.max_query, at.max_key,
            0.0, False, random_state, unused, scale=scale,
        )  # fmt: skip
        grad_projection, grad_query = empty_grads(projection, query)
        grads = split_heads(grad_projection, grad_query, ctx.n_heads)
        for target, source in zip(grads, found, strict=True):
            target.copy_(source)
        if plan.unseen is not None:
            grads[1][plan.unseen] = 0
            grads[2][plan.unseen] = 0
        if plan.has_own:
            queries, tokens = plan.own
            own = (grads[0][queries], grads[1][tokens], grads[2][tokens])
            by_query = lse.t()[queries]
            own_key.backward_(grad_out[queries], out[queries], by_query, q[queries], k[tokens], v[tokens], scale, own)
            grads[0][queries], grads[1][tokens], grads[2][tokens] = own
        return grad_projection, grad_query, None, None
