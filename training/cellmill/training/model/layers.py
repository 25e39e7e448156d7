"""The transformer: self-attention, feed-forward, post-norm or pre-norm, and the stack of layers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from cellmill.training.model.attention import prompt_attention
from cellmill.training.model.config import ModelConfig
from cellmill.training.model.embedding import gather
from cellmill.training.model.layout import Layout, Queries


class FusedProjection(nn.Module):
    """Queries, keys and values in one matrix ``[3 * d, d]``, in this order."""

    def __init__(self, d: int) -> None:
        super().__init__()
        linear = nn.Linear(d, 3 * d)
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Project tokens, or only some of them to queries.

        Parameters
        ----------
        x
            ``[tokens, d]``.
        rows
            int64 rows of x that ask; None lets every token ask.

        Returns
        -------
        tuple
            ``[tokens, 3 * d]`` and None; or keys and values ``[tokens, 2 * d]`` and queries ``[rows, d]``.
        """
        if rows is None:
            return functional.linear(x, self.weight, self.bias), None
        d = x.shape[-1]
        keys_values = functional.linear(x, self.weight[d:], self.bias[d:])
        return keys_values, functional.linear(gather(rows, x), self.weight[:d], self.bias[:d])


class SelfAttention(nn.Module):
    """Prompt attention between its two projections."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.Wqkv = FusedProjection(config.d_model)
        self.out_proj = nn.Linear(config.d_model, config.d_model)

    def forward(self, x: Tensor, layout: Layout, queries: Queries, rows: Tensor | None) -> Tensor:
        """Return ``[queries, d]`` for tokens ``[tokens, d]``."""
        projection, query = self.Wqkv(x, rows)
        plan = layout.plan(queries)
        attended = prompt_attention(
            projection, query, plan, n_heads=self.config.n_heads, attention=self.config.attention
        )
        out: Tensor = self.out_proj(attended)
        if self.config.gen_out_proj == "identity" and plan.has_own:
            return out.index_copy(0, plan.own[0], gather(plan.own[0], attended))
        return out


class TransformerLayer(nn.Module):
    """One layer.

    Post-norm: ``y = LN1(x + A(x)); z = LN2(y + F(y))``. Pre-norm: ``y = x + A(LN1(x)); z = y + F(LN2(y))``.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config)
        self.linear1 = nn.Linear(config.d_model, config.d_ff)
        self.linear2 = nn.Linear(config.d_ff, config.d_model)
        self.norm1 = nn.LayerNorm(config.d_model)
        self.norm2 = nn.LayerNorm(config.d_model)
        self.post_norm = config.norm == "post"
        self.activation = torch.relu_ if config.activation == "relu" else functional.gelu
        self.dropout = config.dropout

    def forward(self, x: Tensor, layout: Layout, queries: Queries = "all") -> Tensor:
        """Return ``[queries, d]`` for tokens ``[tokens, d]``."""
        rows = layout.query_rows(queries)
        residual = x if rows is None else gather(rows, x)
        if self.post_norm:
            y = self.norm1(self._add(self.self_attn(x, layout, queries, rows), residual))
            z: Tensor = self.norm2(self._add(self._feed_forward(y), y))
            return z
        y = self._add(self.self_attn(self.norm1(x), layout, queries, rows), residual)
        return self._add(self._feed_forward(self.norm2(y)), y)

    def _feed_forward(self, y: Tensor) -> Tensor:
        out: Tensor = self.linear2(self._drop(self.activation(self.linear1(y))))
        return out

    def _add(self, branch: Tensor, residual: Tensor) -> Tensor:
        # In place: nobody else holds the branch, and its producer does not need it for its gradient.
        return self._drop(branch).add_(residual)

    def _drop(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.dropout, training=True) if self.dropout and self.training else x


class TransformerEncoder(nn.Module):
    """The stack; only the last layer may ask for fewer queries than there are tokens.

    Each layer is initialised on its own. Pre-norm residual branches start smaller by ``sqrt(2 * n_layers)``, so
    that the variance of the stream does not grow with depth, and a norm follows the last layer.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(config.n_layers))
        self.norm = nn.LayerNorm(config.d_model) if config.norm == "pre" else None
        if config.norm == "pre":
            self._shrink_branches(math.sqrt(2 * config.n_layers))

    def forward(self, x: Tensor, layout: Layout, queries: Queries = "all") -> Tensor:
        """Return ``[queries, d]`` for tokens ``[tokens, d]``."""
        *body, last = self.layers
        for layer in body:
            x = layer(x, layout)
        x = last(x, layout, queries)
        return x if self.norm is None else self.norm(x)

    def _shrink_branches(self, factor: float) -> None:
        with torch.no_grad():
            for name, weight in self.layers.named_parameters():
                if name.endswith(("out_proj.weight", "linear2.weight")):
                    weight.div_(factor)
