"""Draws: exact in number, right in expectation, and sets that hold what they say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import Table

from cellmill.atlas import Atlas
from cellmill.errors import ConfigError
from cellmill.stream import Stream, StreamConfig, class_counts
from cellmill.stream.sampling import copies, draw_cells, draw_sets, n_sets, share_out
from cellmill.tokens import PackedBatch, TokenConfig, Tokeniser
from tests.platform.atlas.builders import add_shard, random_counts

WEIGHTS = st.lists(st.integers(0, 50), min_size=1, max_size=40).filter(any)


@given(WEIGHTS, st.integers(0, 200), st.integers(0, 999))
def test_each_is_drawn_its_share_rounded_up_or_down(weights: list[int], total: int, phase: int) -> None:
    found = share_out(np.array(weights, float), total, phase / 1000)
    assert found.sum() == total
    for weight, n in zip(weights, found.tolist(), strict=True):
        exact = Fraction(total * weight, sum(weights))
        assert exact - 1 < n < exact + 1
        assert n == 0 or weight > 0


@given(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 3)), min_size=1, max_size=9), st.integers(0, 200))
def test_each_class_is_drawn_its_share_rounded_up_or_down(of: list[tuple[int, int]], total: int) -> None:
    sizes, weights = (np.array(part) for part in zip(*of, strict=True))
    classes = np.random.default_rng(total).permutation(np.repeat(np.arange(len(of), dtype=np.int32), sizes))
    draws = draw_cells(weights[classes].astype(float), total, seed=1, epoch=2, shard=3, classes=classes)
    for number, n in enumerate(np.bincount(classes[draws], minlength=len(of)).tolist()):
        exact = Fraction(total * int(sizes[number] * weights[number]), int((sizes * weights).sum()))
        assert exact - 1 < n < exact + 1


def test_over_epochs_the_share_is_exact_and_neighbours_are_drawn_apart() -> None:
    weights = np.full(64, 1.0)
    times = np.zeros(64)
    together = 0
    for epoch in range(2000):
        draws = draw_cells(weights, 32, seed=3, epoch=epoch, shard=5)
        times += np.bincount(draws, minlength=64)
        together += int({0, 1} <= set(draws.tolist()))
    np.testing.assert_allclose(times / 2000, 0.5, atol=0.06)
    assert together / 2000 == pytest.approx(31 / 63 * 0.5, abs=0.04)


@given(WEIGHTS, st.integers(0, 200), st.integers(0, 5), st.integers(0, 5))
def test_draws_are_a_function_of_their_keys(weights: list[int], total: int, epoch: int, shard: int) -> None:
    one = draw_cells(np.array(weights, float), total, seed=1, epoch=epoch, shard=shard)
    again = draw_cells(np.array(weights, float), total, seed=1, epoch=epoch, shard=shard)
    np.testing.assert_array_equal(one, again)
    assert one.size == total
    assert (np.diff(one) >= 0).all()
    assert [(cell, copy) for cell, copy in zip(one.tolist(), copies(one).tolist(), strict=True)] == sorted(
        {(cell, copy) for cell in set(one.tolist()) for copy in range(one.tolist().count(cell))}
    )


@given(st.lists(st.integers(-1, 4), min_size=1, max_size=60), st.integers(2, 7), st.integers(1, 3), st.integers(0, 9))
def test_a_set_is_of_one_group_and_uses_its_cells_evenly(
    groups: list[int], size: int, min_cells: int, epoch: int
) -> None:
    group = np.array(groups, np.int32)
    draws, again = draw_sets(group, size, min_cells, seed=0, epoch=epoch, shard=0)
    assert draws.size == n_sets(group, size, min_cells) * size
    sets = draws.reshape(-1, size)
    for one in sets:
        (of,) = set(group[one].tolist())
        assert of >= 0
        assert len(set(one.tolist())) == min(size, groups.count(of))
    for value in set(groups):
        cells = np.flatnonzero(group == value)
        times = np.bincount(draws, minlength=group.size)[cells]
        if value < 0 or cells.size < min_cells:
            assert not times.any()
        else:
            assert times.min() >= 1
            assert times.max() - times.min() <= 1
    assert len(set(zip(draws.tolist(), again.tolist(), strict=True))) == draws.size


@pytest.fixture(scope="module")
def whole(stream_atlas: Atlas) -> Table:
    table: Table = stream_atlas.snapshot().cells(["cell_id", "kind", "n_genes", "dataset"])
    return table


def sampled(
    atlas: Atlas,
    sampling: dict[str, object],
    *,
    rank: int = 0,
    world: int = 1,
    group_cells: int = 100,
    classes: Sequence[str] = ("A", "B", "C"),
) -> Stream:
    config = {"batch_size": 48, "lanes": 4, "group_cells": group_cells, "window": 64, "sampling": sampling}
    return Stream(
        atlas.snapshot().select(),
        Tokeniser(TokenConfig(max_genes=6)),
        StreamConfig.model_validate(config),
        rank=rank,
        world_size=world,
        labels={"kind": ("kind", classes)},
    )


def drawn(batches: Iterable[PackedBatch]) -> Counter[int]:
    return Counter(int(cell) for batch in batches for cell in batch.cell_id)


def test_classes_are_drawn_equally_often(stream_atlas: Atlas, whole: Table) -> None:
    stream = sampled(stream_atlas, {"kind": "balanced", "by": "dataset", "epoch_cells": 900})
    assert (stream.n_cells, stream.left_out) == (900, 0)
    dataset = dict(zip(whole["cell_id"].to_pylist(), whole["dataset"].to_pylist(), strict=True))
    times = drawn(stream.epoch(0))
    by = Counter[str]()
    for cell, n in times.items():
        by[dataset[cell]] += n
    assert all(abs(n - 300) <= 1 for n in by.values())
    rare = [times[cell] for cell, name in dataset.items() if name == "three"]
    assert set(rare) == {3, 4}  # 300 draws of 77 cells
    assert drawn(stream.epoch(1)) != times


@pytest.mark.parametrize(
    "values",
    [
        np.array([True, False]),
        np.array([0.5, 1.0, 2.0]),
        np.array([0.1, 1.0], np.float32),
        np.array([7, 8, -1]),
        pd.array([1, None, 3]),
        np.array(["a", "1.0"]),
    ],
    ids=["truth", "double", "single", "integer", "missing", "text"],
)
def test_classes_of_every_type_are_drawn_and_labelled(tmp_path: Path, values: Any) -> None:
    atlas = Atlas.create(tmp_path / "atlas")
    kinds = pd.Series(values).iloc[np.arange(60) % len(values)]
    atlas.commit([add_shard(atlas, "one", random_counts(60, 20, seed=1), genes=range(20), obs={"kind": kinds})])
    counts = class_counts(atlas.snapshot().select(), "kind")
    known = int(kinds.notna().sum())
    assert sum(counts.values()) == known
    assert len(counts) == kinds.nunique()
    for sampling in (
        {"kind": "balanced", "by": "kind", "epoch_cells": 30 * len(counts)},
        {"kind": "weighted", "by": "kind", "weights": dict.fromkeys(counts, 1), "epoch_cells": 30 * len(counts)},
    ):
        stream = sampled(atlas, sampling, classes=tuple(counts))
        assert stream.left_out == 60 - known
        codes = np.concatenate([batch.labels["kind"] for batch in stream.epoch(0)])
        times = np.bincount(codes, minlength=len(counts))
        assert np.abs(times - 30).max() <= 1, times


def test_weights_by_class_and_by_column(stream_atlas: Atlas, whole: Table) -> None:
    kinds = dict(zip(whole["cell_id"].to_pylist(), whole["kind"].to_pylist(), strict=True))
    stream = sampled(stream_atlas, {"kind": "weighted", "by": "kind", "weights": {"A": 3, "B": 1}})
    times = drawn(stream.epoch(0))
    total = Counter[str]()
    for cell, n in times.items():
        total[kinds[cell]] += n
    n_a, n_b = (sum(kind == name for kind in kinds.values()) for name in "AB")
    assert total["C"] == 0
    assert stream.left_out == sum(kind == "C" for kind in kinds.values())
    assert total["A"] / total["B"] == pytest.approx(3 * n_a / n_b, rel=0.02)
    by_genes = sampled(stream_atlas, {"kind": "weighted", "by": "n_genes", "epoch_cells": 5000})
    n_genes = dict(zip(whole["cell_id"].to_pylist(), whole["n_genes"].to_pylist(), strict=True))
    times = drawn(by_genes.epoch(0))
    for cell, n in n_genes.items():
        assert abs(times[cell] - 5000 * n / sum(n_genes.values())) < 2.1  # rounded by shard, then by cell


def test_a_cell_drawn_twice_gives_other_tokens(stream_atlas: Atlas) -> None:
    stream = sampled(stream_atlas, {"kind": "weighted", "by": "kind", "weights": {"A": 1}, "epoch_cells": 2000})
    tokens: dict[int, list[tuple[int, ...]]] = {}
    for batch in stream.epoch(0):
        for i, cell in enumerate(batch.cell_id.tolist()):
            part = batch.gene[batch.cu_seqlens[i] + 1 : batch.cu_seqlens[i + 1]]
            tokens.setdefault(cell, []).append(tuple(sorted(part.tolist())))
    repeated = [found for found in tokens.values() if len(found) > 1]
    assert len(repeated) > 100
    assert sum(len(set(found)) == len(found) for found in repeated) > 0.95 * len(repeated)


@pytest.mark.parametrize(
    "sampling",
    [
        {"kind": "balanced", "by": "kind", "epoch_cells": 700},
        {"kind": "sets", "by": ["dataset", "kind"], "size": 6, "min_cells": 3},
    ],
)
def test_draws_do_not_depend_on_workers_groups_or_interruptions(
    stream_atlas: Atlas, sampling: dict[str, object]
) -> None:
    alone = list(sampled(stream_atlas, sampling).epoch(2))
    ranks = [list(sampled(stream_atlas, sampling, rank=r, world=2, group_cells=37).epoch(2)) for r in (0, 1)]
    assert len(alone) == len(ranks[0]) == len(ranks[1])
    for whole_batch, *parts in zip(alone, *ranks, strict=True):
        assert drawn([whole_batch]) == drawn(parts)
    resumed = list(sampled(stream_atlas, sampling).epoch(2, start_step=3))
    for one, other in zip(alone[3:], resumed, strict=True):
        np.testing.assert_array_equal(one.cell_id, other.cell_id)
        np.testing.assert_array_equal(one.gene, other.gene)


def test_sets_share_their_columns_and_stay_whole(stream_atlas: Atlas, whole: Table) -> None:
    keys = zip(whole["dataset"].to_pylist(), whole["kind"].to_pylist(), strict=True)
    group = dict(zip(whole["cell_id"].to_pylist(), keys, strict=True))
    stream = sampled(stream_atlas, {"kind": "sets", "by": ["dataset", "kind"], "size": 6})
    times: Counter[int] = Counter()
    for batch in stream.epoch(0):
        assert batch.n_cells % 6 == 0
        times += drawn([batch])
        for number in np.unique(batch.labels["set"]):
            cells = batch.cell_id[batch.labels["set"] == number].tolist()
            assert len(cells) == len(set(cells)) == 6
            assert len({group[cell] for cell in cells}) == 1
        parts = stream.micro_batches(batch, 3, batch.n_tokens)
        assert sum(part.n_cells for part in parts) == batch.n_cells
        for part in parts:
            assert (np.unique(part.labels["set"], return_counts=True)[1] == 6).all()
    assert set(times) == set(group)
    assert max(times.values()) == 2
    counts = Counter(group.values())
    assert times.total() == sum(-(-n // 6) * 6 for n in counts.values()) == stream.n_cells


@pytest.mark.parametrize(
    ("sampling", "what"),
    [
        ({"kind": "balanced", "by": "kinds"}, "no column 'kinds'"),
        ({"kind": "weighted", "by": "kind", "weights": {"D": 1}}, "No selected cell has kind 'D'"),
        ({"kind": "weighted", "by": "kind"}, "not numbers"),
        ({"kind": "weighted", "by": "kind", "weights": {"A": 0}}, "weight above zero"),
        ({"kind": "sets", "by": ["kind"], "size": 5}, "not a multiple of sets of 5"),
        ({"kind": "sets", "by": ["kind"], "size": 6, "min_cells": 10_000}, "No group of kind"),
    ],
)
def test_what_cannot_be_drawn_is_refused(stream_atlas: Atlas, sampling: dict[str, object], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        sampled(stream_atlas, sampling)
