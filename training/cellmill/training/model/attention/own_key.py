"""The key that only its own query sees: its share of attention, merged in log-sum-exp.

A flash call over the perceptual keys gives ``o_p`` and ``l_p = log sum_j exp(s_j)``. With the own score
``s = scale * q.k`` the softmax over perceptual keys and the own key together is

    L = logaddexp(l_p, s)        w = exp(l_p - L) = sigmoid(l_p - s)        o = w o_p + (1 - w) v

A flash backward that is given the merged ``(o, L)`` computes the true probabilities of the perceptual keys, so
only the own column is left, and no gradient flows through ``l_p``:

    p = exp(s - L)    ds = scale p (do.v - do.o)    dq += ds k    dk = ds q    dv = p do
"""

from __future__ import annotations

import torch
from torch import Tensor


def merge_(out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float) -> None:
    """Add the own key to the output and log-sum-exp of a call over perceptual keys, in place.

    Parameters
    ----------
    out, q, k, v
        ``[..., heads, d_head]`` of the generative queries.
    lse
        ``[..., heads]``, natural logarithm, float32 or wider.
    scale
        Factor of the scores.
    """
    score = _score(q, k, lse.dtype, scale)
    weight = torch.sigmoid(lse - score).unsqueeze(-1)
    out.copy_(torch.lerp(v.to(lse.dtype), out.to(lse.dtype), weight))
    lse.copy_(torch.logaddexp(lse, score))


def backward_(
    grad_out: Tensor,
    out: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    grads: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Write the gradients of the own key; ``out`` and ``lse`` are the merged ones.

    Parameters
    ----------
    grad_out, out, q, k, v
        ``[..., heads, d_head]`` of the generative queries.
    lse
        ``[..., heads]``.
    scale
        Factor of the scores.
    grads
        Gradients of q, k and v; the first is added to, the others are overwritten.
    """
    grad_q, grad_k, grad_v = grads
    wide = lse.dtype
    probability = torch.exp(_score(q, k, wide, scale) - lse)
    grad_score = (grad_out.to(wide) * (v.to(wide) - out)).sum(-1).mul_(probability).mul_(scale).unsqueeze(-1)
    grad_q.add_(grad_score * k)
    grad_k.copy_(grad_score * q)
    grad_v.copy_(probability.unsqueeze(-1) * grad_out)


def _score(q: Tensor, k: Tensor, dtype: torch.dtype, scale: float) -> Tensor:
    return (q.to(dtype) * k).sum(-1).mul_(scale)
