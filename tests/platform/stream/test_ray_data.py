"""The stream through Ray Data: the same bits in the same order, and faults that end it with a reason."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cellmill.atlas import Atlas
from cellmill.errors import CountsError, IntegrityError, ResourceError
from cellmill.stream import Stream, StreamConfig
from cellmill.tokens import CellBlock, PackedBatch, TokenConfig, Tokeniser
from tests.platform.stream.conftest import make_atlas
from tests.platform.stream.test_stream import LABELS, TOKENS, equal

pytestmark = pytest.mark.usefixtures("ray_cluster")


class Deadly(Tokeniser):
    """Kills its process where it meets a cell; only once if there is a file to remember that by."""

    def __init__(self, cell_id: int, memory: Path | None = None) -> None:
        super().__init__(TOKENS)
        self._victim, self._memory = cell_id, memory

    def tokenise(self, block: CellBlock, **keys: Any) -> PackedBatch:
        if self._victim in block.cell_id and not (self._memory and self._memory.exists()):
            if self._memory:
                self._memory.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().tokenise(block, **keys)


class Picky(Tokeniser):
    """Refuses every block."""

    def tokenise(self, block: CellBlock, **keys: Any) -> PackedBatch:
        raise CountsError("No counts please.", where="here", fix="None.")


def stream(atlas: Atlas, tokeniser: Tokeniser, backend: str = "ray", **changes: Any) -> Stream:
    options: dict[str, Any] = {"batch_size": 32, "lanes": 8, "window": 64, "group_cells": 128, "data_cpus": 2.0}
    config = StreamConfig.model_validate({**options, "backend": backend, **changes})
    return Stream(atlas.snapshot().select(), tokeniser, config, labels=LABELS)


def test_the_same_bits_in_the_same_order(stream_atlas: Atlas) -> None:
    import ray

    before = ray.data.DataContext.get_current().execution_options.preserve_order
    for config in (TOKENS, TokenConfig(value="log1p", normalize_total=1e4, mask_ratio=0.3, max_genes=9)):
        tokeniser = Tokeniser(config)
        here = list(stream(stream_atlas, tokeniser, "local", data_cpus=2).epoch(2))
        there = list(stream(stream_atlas, tokeniser).epoch(2))
        assert len(here) == len(there) > 20
        for one, other in zip(here, there, strict=True):
            assert equal(one, other)
            assert np.array_equal(_masks(one), _masks(other))
    rest = list(stream(stream_atlas, Tokeniser(TOKENS), group_cells=999).epoch(2, 11))
    again = list(stream(stream_atlas, Tokeniser(TOKENS), "local").epoch(2, 11))
    assert all(equal(one, other) for one, other in zip(again, rest, strict=True))
    assert ray.data.DataContext.get_current().execution_options.preserve_order == before


def test_more_groups_than_one_dataset_holds(stream_atlas: Atlas, monkeypatch: pytest.MonkeyPatch) -> None:
    from cellmill.stream import ray_data

    monkeypatch.setattr(ray_data, "_GROUPS_PER_DATASET", 3)
    there = list(stream(stream_atlas, Tokeniser(TOKENS)).epoch(0))
    here = list(stream(stream_atlas, Tokeniser(TOKENS), "local").epoch(0))
    assert all(equal(one, other) for one, other in zip(here, there, strict=True))


def test_errors_come_home_as_they_are(tmp_path: Path, stream_atlas: Atlas) -> None:
    with pytest.raises(CountsError, match="No counts please") as caught:
        list(stream(stream_atlas, Picky(TOKENS)).epoch(0))
    assert (caught.value.where, caught.value.fix) == ("here", "None.")
    atlas = make_atlas(tmp_path / "atlas")
    source = stream(atlas, Tokeniser(TOKENS))
    entry = atlas.snapshot().shards[0]
    shutil.rmtree(atlas.storage.local_path(entry.shard_path))
    with pytest.raises(IntegrityError, match=entry.digest):
        list(source.epoch(0))


def victim(atlas: Atlas, step: int) -> int:
    return int(list(stream(atlas, Tokeniser(TOKENS), "local").epoch(0))[step].cell_id[3])


def test_a_worker_that_dies_once_costs_nothing(stream_atlas: Atlas, tmp_path: Path) -> None:
    memory = tmp_path / "died"
    there = list(stream(stream_atlas, Deadly(victim(stream_atlas, 12), memory)).epoch(0))
    assert memory.exists()
    here = list(stream(stream_atlas, Tokeniser(TOKENS), "local").epoch(0))
    assert all(equal(one, other) for one, other in zip(here, there, strict=True))


def test_a_task_that_always_dies_ends_the_run_with_its_windows_named(stream_atlas: Atlas) -> None:
    with pytest.raises(ResourceError, match="died 2 times in a row") as caught:
        list(stream(stream_atlas, Deadly(victim(stream_atlas, 12)), task_retries=1).epoch(0))
    assert caught.value.where.startswith("epoch 0, group ")
    assert "windows" in caught.value.where
    assert "later" not in caught.value.where


def test_without_a_cpu_for_data_the_stream_is_refused(stream_atlas: Atlas, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    from cellmill.stream import ray_data

    class Holder:
        def ready(self) -> bool:
            return True

    monkeypatch.setattr(ray_data, "START_SECONDS", 2.0)
    holder: Any = ray.remote(num_cpus=ray.cluster_resources()["CPU"])(Holder).remote()
    ray.get(holder.ready.remote())
    try:
        with pytest.raises(ResourceError, match="No CPU was free"):
            next(stream(stream_atlas, Tokeniser(TOKENS)).epoch(0))
    finally:
        ray.kill(holder)


def _masks(packed: PackedBatch) -> Any:
    return np.zeros(0, bool) if packed.masked is None else packed.masked
