from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cellmill.errors import ConfigError
from cellmill.training.model.attention import describe_backend, prompt_attention
from cellmill.training.model.attention.backend import Backend, Wanted, kernel
from cellmill.training.model.layout import Layout, Queries, QueryPlan, group_cells
from tests.training.model.varlen_kernel import register_varlen_kernel

HEADS, D = 2, 16
RECTANGLE = [(4, 3)] * 3
RAGGED = [(1, 5), (3, 0), (4, 4), (1, 0), (7, 2)]
LONG = [(257, 100), (256, 101), (1, 300)]


def make_layout(shapes: list[tuple[int, int]]) -> Layout:
    pcpt = np.array([p for p, _ in shapes], np.int64)
    return Layout(pcpt + np.array([g for _, g in shapes], np.int64), pcpt, torch.device("cpu"))


def plain(projection: Tensor, query: Tensor | None, plan: QueryPlan) -> Tensor:
    """Attention written out, one cell, head and query at a time."""
    dh = D // HEADS
    d_query = 0 if query is not None else D
    outs = []
    for cell in range(len(plan.length)):
        start, n_pcpt = int(plan.token_start[cell]), int(plan.n_pcpt[cell])
        first_own = int(plan.n_query[cell] - plan.n_own[cell])
        for i in range(int(plan.n_query[cell])):
            row = int(plan.query_start[cell]) + i
            keys = [start + j for j in range(n_pcpt)]
            if i >= first_own:
                keys.append(start + n_pcpt + i - first_own)
            heads = []
            for h in range(HEADS):
                at = slice(h * dh, (h + 1) * dh)
                q = (projection if query is None else query)[row, :D][at]
                k, v = projection[keys, d_query : d_query + D][:, at], projection[keys, d_query + D :][:, at]
                heads.append(torch.softmax(k @ q / dh**0.5, 0) @ v)
            outs.append(torch.cat(heads))
    return torch.stack(outs)


def inputs(layout: Layout, queries: Queries, dtype: torch.dtype, scale: float = 1.0) -> tuple[Tensor, Tensor | None]:
    torch.manual_seed(0)
    width = 3 * D if queries == "all" else 2 * D
    projection = (scale * torch.randn(layout.n_tokens, width, dtype=torch.float64)).to(dtype).requires_grad_()
    if queries == "all":
        return projection, None
    query = torch.randn(layout.plan(queries).n_queries, D, dtype=torch.float64)
    return projection, query.to(dtype).requires_grad_()


def run(
    layout: Layout, queries: Queries, dtype: torch.dtype, attention: Wanted | str, scale: float = 1.0
) -> list[Tensor]:
    projection, query = inputs(layout, queries, dtype, scale)
    plan = layout.plan(queries)
    if attention == "plain":
        out = plain(projection, query, plan)
    elif attention == "varlen":
        out = kernel(Backend("flash-cuda", "test"))(projection, query, plan, HEADS)
    else:
        wanted: Wanted = "flash" if attention == "flash" else "sdpa"
        out = prompt_attention(projection, query, plan, n_heads=HEADS, attention=wanted)
    torch.manual_seed(1)
    weight = torch.randn(out.shape, dtype=torch.float64).to(dtype)
    grads = torch.autograd.grad((out * weight).sum(), [x for x in (projection, query) if x is not None])
    return [out.detach(), *grads]


@pytest.mark.parametrize("shapes", [RECTANGLE, RAGGED, sorted(RAGGED, key=sum)], ids=["rectangle", "ragged", "sorted"])
@pytest.mark.parametrize("queries", ["all", "targets", "cell"])
@pytest.mark.parametrize("attention", ["flash", "sdpa", "varlen"])
def test_outputs_and_gradients_equal_attention_written_out(
    shapes: list[tuple[int, int]], queries: Queries, attention: str
) -> None:
    layout = make_layout(shapes)
    expected = run(layout, queries, torch.float64, "plain")
    with register_varlen_kernel():
        found = run(layout, queries, torch.float64, attention)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("attention", ["flash", "sdpa", "varlen"])
def test_no_cells_at_all(attention: str) -> None:
    found = run(make_layout([]), "all", torch.float32, attention)
    assert [x.shape for x in found] == [(0, D), (0, 3 * D)]


@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize("queries", ["all", "targets"])
def test_float32_gradients_hold_for_one_perceptual_token_and_for_many(queries: Queries, scale: float) -> None:
    layout = make_layout(LONG)
    exact = run(layout, queries, torch.float64, "sdpa", scale)
    for a, b in zip(run(layout, queries, torch.float32, "flash", scale), exact, strict=True):
        assert (a - b).abs().max() / b.abs().max() < 2e-5


def test_bfloat16_stays_close() -> None:
    layout = make_layout(RECTANGLE + RAGGED)
    exact = run(layout, "all", torch.float64, "sdpa")
    for a, b in zip(run(layout, "all", torch.bfloat16, "flash"), exact, strict=True):
        assert (a - b).abs().max() / b.abs().max() < 3e-2


def test_gradcheck() -> None:
    layout = make_layout([(1, 2), (3, 1)])
    for queries in ("all", "targets", "cell"):
        projection, query = inputs(layout, queries, torch.float64)
        plan = layout.plan(queries)

        def attend(*x: Tensor, plan: QueryPlan = plan) -> Tensor:
            return prompt_attention(x[0], x[1] if len(x) > 1 else None, plan, n_heads=HEADS, attention="flash")

        assert torch.autograd.gradcheck(attend, tuple(x for x in (projection, query) if x is not None))


@settings(max_examples=40, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 6)), min_size=1, max_size=8),
    queries=st.sampled_from(["all", "targets", "cell"]),
)
def test_flash_equals_dense_for_any_lengths(shapes: list[tuple[int, int]], queries: Queries) -> None:
    layout = make_layout(shapes)
    for a, b in zip(
        run(layout, queries, torch.float64, "flash"), run(layout, queries, torch.float64, "sdpa"), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@given(
    shapes=st.lists(st.tuples(st.integers(1, 300), st.integers(0, 300)), max_size=30),
)
def test_groups_cover_cells_in_order(shapes: list[tuple[int, int]]) -> None:
    pcpt = np.array([p for p, _ in shapes], np.int64)
    bounds = group_cells(pcpt + np.array([g for _, g in shapes], np.int64), pcpt)
    assert bounds[0] == 0
    assert bounds[-1] == len(shapes)
    assert all(a < b for a, b in itertools.pairwise(bounds))


def test_equal_cells_make_one_call_and_unequal_large_ones_several() -> None:
    equal = make_layout([(128, 128)] * 32).plan("all")
    assert [b.padding for b in equal.buckets] == [None]
    mixed = make_layout([(64, 192)] * 8 + [(128, 128)] * 8 + [(192, 64)] * 8).plan("all")
    assert [b.n_cells for b in mixed.buckets] == [8, 8, 8]
    assert all(b.padding is None for b in mixed.buckets)


def test_backends_are_named_with_a_reason() -> None:
    assert describe_backend("cpu").name == "flash-cpu"
    assert describe_backend("cuda").name == "flash-cuda"
    assert describe_backend("cuda", dtype=torch.float32).name == "sdpa"
    assert "float32" in describe_backend("cuda", dtype=torch.float32).reason
    assert describe_backend("cuda", d_head=20).name == "sdpa"
    assert describe_backend("cpu", attention="sdpa").name == "sdpa"
    assert describe_backend("mps").name == "sdpa"
    with pytest.raises(ConfigError, match="float32"):
        describe_backend("cuda", dtype=torch.float32, attention="flash")
