"""Prompt attention on the flash kernels for CPU: one call per bucket of cells."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cellmill.training.model.attention import own_key
from cellmill.training.model.attention.heads import by_cell, empty_grads, split_heads
from cellmill.training.model.layout import Bucket, Padding, QueryPlan

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class FlashCPU(torch.autograd.Function):
    """Attention over perceptual keys and the own key; see :func:`prompt_attention` for the arguments."""

    @staticmethod
    def forward(ctx: Any, projection: Tensor, query: Tensor | None, plan: QueryPlan, n_heads: int) -> Tensor:
        """Return outputs ``[queries, d]``."""
        q, k, v = split_heads(projection, query, n_heads)
        scale = q.shape[-1] ** -0.5
        outs, lses = [], []
        for bucket in plan.buckets:
            out, lse = _attend(bucket, q, k, v, scale)
            outs.append(out)
            lses.append(lse)
        if not outs:
            outs, lses = [q.new_empty(q.shape)], [q.new_empty(q.shape[:-1])]
        out = outs[0] if len(outs) == 1 else torch.cat(outs)
        lse = lses[0] if len(lses) == 1 else torch.cat(lses)
        for bucket in plan.buckets:
            if bucket.n_own:
                _merge_own(bucket, out, lse, q, k, v, scale)
        ctx.save_for_backward(projection, query, out, lse)
        ctx.plan, ctx.n_heads = plan, n_heads
        return out.flatten(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        """Return gradients of the projection and of the separate queries."""
        projection, query, out, lse = cast("tuple[Tensor, Tensor | None, Tensor, Tensor]", ctx.saved_tensors)
        plan: QueryPlan = ctx.plan
        q, k, v = split_heads(projection, query, ctx.n_heads)
        grad_out = grad.unflatten(-1, (ctx.n_heads, -1)).contiguous()
        grad_projection, grad_query = empty_grads(projection, query)
        grads = split_heads(grad_projection, grad_query, ctx.n_heads)
        scale = q.shape[-1] ** -0.5
        for bucket in plan.buckets:
            _attend_backward(bucket, grad_out, q, k, v, out, lse, scale, grads)
            if bucket.n_own:
                _own_backward(bucket, grad_out, out, lse, q, k, v, scale, grads)
        return grad_projection, grad_query, None, None


def _attend(bucket: Bucket, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Return flat outputs ``[queries, heads, d_head]`` and log-sum-exp ``[queries, heads]`` of one bucket."""
    pad = bucket.padding
    mask = None if pad is None else _key_mask(pad, bucket, q)
    out, lse = _forward(
        _queries(bucket, q), _keys(bucket, k), _keys(bucket, v), 0.0, False, attn_mask=mask, scale=scale
    )
    out, lse = out.transpose(1, 2).flatten(0, 1), lse.transpose(1, 2).flatten(0, 1)
    return (out, lse) if pad is None else (out[pad.query_slots], lse[pad.query_slots])


def _attend_backward(
    bucket: Bucket,
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    grads: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Overwrite the gradients of the rows of one bucket with those of a call over perceptual keys."""
    pad = bucket.padding
    dq, dk, dv = _backward(
        _queries(bucket, grad_out) if pad is None else _padded_grad(pad, bucket, grad_out),
        _queries(bucket, q),
        _keys(bucket, k),
        _keys(bucket, v),
        _queries(bucket, out),
        _queries(bucket, lse.unsqueeze(-1)).squeeze(-1),
        0.0,
        False,
        attn_mask=None if pad is None else _key_mask(pad, bucket, q),
        scale=scale,
    )
    grad_q, grad_k, grad_v = grads
    dq, dk, dv = (d.transpose(1, 2) for d in (dq, dk, dv))
    if pad is None:
        by_cell(grad_q[bucket.query], bucket.n_cells).copy_(dq)
        for target, source in ((grad_k, dk), (grad_v, dv)):
            rows = by_cell(target[bucket.tokens], bucket.n_cells)
            rows[:, : bucket.n_key].copy_(source)
            # With fewer queries than tokens a generative token may be nobody's key.
            if bucket.n_own == 0 and rows.shape[1] > bucket.n_key:
                rows[:, bucket.n_key :].zero_()
        return
    grad_q[bucket.query] = dq.flatten(0, 1)[pad.query_slots]
    for target, source in ((grad_k, dk), (grad_v, dv)):
        target[bucket.tokens] = 0
        target[pad.real_key_rows] = source.flatten(0, 1)[pad.key_slots]


def _merge_own(bucket: Bucket, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float) -> None:
    if bucket.padding is None:
        own = (_own_queries(bucket, out), _own_queries(bucket, lse), _own_queries(bucket, q))
        own_key.merge_(*own, _own_tokens(bucket, k), _own_tokens(bucket, v), scale)
        return
    queries, tokens = bucket.padding.own_queries, bucket.padding.own_tokens
    own_out, own_lse = out[queries], lse[queries]
    own_key.merge_(own_out, own_lse, q[queries], k[tokens], v[tokens], scale)
    out[queries], lse[queries] = own_out, own_lse


def _own_backward(
    bucket: Bucket,
    grad_out: Tensor,
    out: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    grads: tuple[Tensor, Tensor, Tensor],
) -> None:
    if bucket.padding is None:
        own_key.backward_(
            _own_queries(bucket, grad_out),
            _own_queries(bucket, out),
            _own_queries(bucket, lse),
            _own_queries(bucket, q),
            _own_tokens(bucket, k),
            _own_tokens(bucket, v),
            scale,
            (_own_queries(bucket, grads[0]), _own_tokens(bucket, grads[1]), _own_tokens(bucket, grads[2])),
        )
        return
    queries, tokens = bucket.padding.own_queries, bucket.padding.own_tokens
    own = (grads[0][queries], grads[1][tokens], grads[2][tokens])
    own_key.backward_(grad_out[queries], out[queries], lse[queries], q[queries], k[tokens], v[tokens], scale, own)
    grads[0][queries], grads[1][tokens], grads[2][tokens] = own


def _queries(bucket: Bucket, x: Tensor) -> Tensor:
    """Return query rows as ``[cells, heads, n_query, d]``."""
    rows = x[bucket.query] if bucket.padding is None else x[bucket.padding.query_rows]
    return by_cell(rows, bucket.n_cells).transpose(1, 2)


def _keys(bucket: Bucket, x: Tensor) -> Tensor:
    """Return the perceptual rows of keys or values as ``[cells, heads, n_key, d]``."""
    if bucket.padding is None:
        rows = by_cell(x[bucket.tokens], bucket.n_cells)[:, : bucket.n_key]
    else:
        rows = by_cell(x[bucket.padding.key_rows], bucket.n_cells)
    return rows.transpose(1, 2)


def _own_queries(bucket: Bucket, x: Tensor) -> Tensor:
    return by_cell(x[bucket.query], bucket.n_cells)[:, -bucket.n_own :]


def _own_tokens(bucket: Bucket, x: Tensor) -> Tensor:
    return by_cell(x[bucket.tokens], bucket.n_cells)[:, bucket.n_key :]


def _padded_grad(pad: Padding, bucket: Bucket, grad_out: Tensor) -> Tensor:
    # Zero where padded: such a query then has no influence on any gradient.
    padded = grad_out.new_zeros(bucket.n_cells * bucket.n_query, *grad_out.shape[1:])
    padded[pad.query_slots] = grad_out[bucket.query]
    return by_cell(padded, bucket.n_cells).transpose(1, 2)


def _key_mask(pad: Padding, bucket: Bucket, like: Tensor) -> Tensor:
    mask = like.new_zeros(bucket.n_cells, 1, 1, bucket.n_key)
    mask.masked_fill_(~pad.key_is_real[:, None, None, :], float("-inf"))
    return mask.expand(-1, -1, bucket.n_query, -1)
