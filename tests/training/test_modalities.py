"""Peaks beside genes: training and inference give every peak one value, and bin the genes among themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cellmill.atlas import Atlas
from cellmill.config import parse_config
from cellmill.genes import Feature, Vocabulary
from cellmill.tokens import CellBlock, PackedBatch, TokenConfig
from cellmill.training.config import PretrainConfig
from cellmill.training.inference import Network
from cellmill.training.job import Cells, Job
from cellmill.training.model import CellModel, ModelConfig
from cellmill.training.preprocessing import Preprocessing
from tests.platform.atlas import builders

TOKENS = TokenConfig(value="midrank", binary_value=3)


def features(numbers: range) -> list[Feature]:
    return [Feature(f"f{i}", f"f{i}", modality="rna" if i < 20 else "atac", organism="human") for i in numbers]


def check(packed: PackedBatch, rna: int) -> None:
    peaks = packed.gene >= rna
    genes = (packed.gene > 1) & ~peaks
    assert peaks.any()
    assert set(packed.value[peaks].tolist()) == {3}
    # Binned among themselves, the largest of a cell has the last bin.
    largest = np.maximum.reduceat(np.where(genes, packed.value, 0), packed.cu_seqlens[:-1])
    assert (largest >= 25).all()


def test_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builders, "make_features", features)
    atlas = Atlas.create(tmp_path / "atlas")
    counts = builders.random_counts(60, 40, density=0.6)
    atlas.commit([builders.add_shard(atlas, "both", counts)])
    told = {"name": "x", "output": str(tmp_path / "run"), "atlas": atlas.url, "steps": 1, "stream": {"batch_size": 20}}
    job = Job(
        run=tmp_path / "run",
        config=parse_config(PretrainConfig, told, where="test"),
        cells=Cells(atlas.url, 1, None, TOKENS, None),
        task="generate",
        model=ModelConfig(n_tokens=48),
        init=None,
    )
    check(PackedBatch.concatenate(list(job.stream(0, 1).epoch(0))), 28)


def test_inference() -> None:
    vocabulary = Vocabulary(features(range(40)))
    config = ModelConfig(n_tokens=vocabulary.size, d_model=16, n_layers=1, n_heads=2, d_ff=16)
    network = Network(
        CellModel(config), vocabulary=vocabulary, preprocessing=Preprocessing(tokens=TOKENS, panel=None), device="cpu"
    )
    counts = builders.random_counts(12, 40, density=0.6)
    block = CellBlock.from_csr(counts, np.arange(8, 48, dtype=np.uint32))
    check(network._tokeniser.tokenise(block, seed=0, epoch=0), 28)
    assert torch.isfinite(torch.from_numpy(network.embed(block))).all()
