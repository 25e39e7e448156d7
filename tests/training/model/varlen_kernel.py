"""A slow stand-in on CPU for torch's variable-length flash kernels, which exist on CUDA alone.

It has the contract that the CUDA kernels document, or a weaker one: segments may have no queries; the key and value
gradients of such segments are undefined (here nan); log-sum-exp is ``[heads, queries]``; the backward trusts the
output and log-sum-exp that it is given.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def _segments(cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int) -> Iterator[tuple[slice, slice]]:
    assert cu_q.dtype == cu_k.dtype == torch.int32
    for i in range(len(cu_q) - 1):
        q, k = slice(int(cu_q[i]), int(cu_q[i + 1])), slice(int(cu_k[i]), int(cu_k[i + 1]))
        assert q.stop - q.start <= max_q
        assert k.stop - k.start <= max_k
        yield q, k


def _forward(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int,
    dropout: float, causal: bool, debug: bool, *, scale: float, **unused: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    assert not dropout
    assert not causal
    out, lse = torch.full_like(q, float("nan")), q.new_full((q.shape[1], q.shape[0]), float("nan"))
    for at_q, at_k in _segments(cu_q, cu_k, max_q, max_k):
        score = torch.einsum("qhd,khd->hqk", q[at_q], k[at_k]) * scale
        lse[:, at_q] = score.logsumexp(-1)
        out[at_q] = torch.einsum("hqk,khd->qhd", score.softmax(-1), v[at_k])
    empty = torch.empty(0)
    return out, lse, empty, empty, empty


def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, cu_q: Tensor, cu_k: Tensor,
    max_q: int, max_k: int, dropout: float, causal: bool, state: Tensor, unused: Tensor, *, scale: float,
    **more: Any,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    dq, dk, dv = (torch.full_like(x, float("nan")) for x in (q, k, v))
    delta = (grad * out).sum(-1).t()
    for at_q, at_k in _segments(cu_q, cu_k, max_q, max_k):
        if at_q.start == at_q.stop:
            continue
        p = torch.exp(torch.einsum("qhd,khd->hqk", q[at_q], k[at_k]) * scale - lse[:, at_q, None])
        ds = p * (torch.einsum("qhd,khd->hqk", grad[at_q], v[at_k]) - delta[:, at_q, None]) * scale
        dq[at_q] = torch.einsum("hqk,khd->qhd", ds, k[at_k])
        dk[at_k] = torch.einsum("hqk,qhd->khd", ds, q[at_q])
        dv[at_k] = torch.einsum("hqk,qhd->khd", p, grad[at_q])
    return dq, dk, dv


@contextmanager
def register_varlen_kernel() -> Iterator[None]:
    """Give the aten operators a CPU kernel for a while."""
    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("_flash_attention_forward", _forward, "CPU")
        library.impl("_flash_attention_backward", _backward, "CPU")
        yield
