"""Genes that a configuration names stay in every cell, in training and in inference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from cellmill.atlas import Atlas
from cellmill.config import parse_config
from cellmill.errors import ConfigError
from cellmill.tokens import CellBlock, PackedBatch, TokenConfig
from cellmill.training.config import PretrainConfig
from cellmill.training.inference import Network
from cellmill.training.job import Cells, Job
from cellmill.training.model import CellModel, ModelConfig
from cellmill.training.preprocessing import Preprocessing, panel_ids
from tests.platform.atlas.builders import add_shard, make_features, random_counts

NAMED = tuple(feature.id for feature in make_features([3, 11]))
TOKENS = TokenConfig(max_genes=5, keep=NAMED)


def job(atlas: Atlas, path: Path, panel: list[int] | None = None) -> Job:
    told = {"name": "x", "output": str(path), "atlas": atlas.url, "steps": 1, "stream": {"batch_size": 20}}
    tokens = None if panel is None else np.array(panel, np.uint32)
    config = parse_config(PretrainConfig, told, where="test")
    cells = Cells(atlas.url, 1, None, TOKENS, tokens)
    return Job(run=path, config=config, cells=cells, task="generate", model=ModelConfig(n_tokens=48), init=None)


@pytest.fixture
def atlas(tmp_path: Path) -> Atlas:
    made = Atlas.create(tmp_path / "atlas")
    counts = random_counts(60, 40, density=0.6).toarray()
    counts[:, [3, 11]] = 1
    made.commit([add_shard(made, "one", counts)])
    return made


def check(packed: PackedBatch) -> None:
    assert (packed.lengths == 6).all()
    for token in (11, 19):
        assert np.count_nonzero(packed.gene == token) == packed.n_cells


def test_training_and_inference(atlas: Atlas, tmp_path: Path) -> None:
    batches = list(job(atlas, tmp_path / "run").stream(0, 1).epoch(0))
    check(PackedBatch.concatenate(batches))
    vocabulary = atlas.vocabulary()
    config = ModelConfig(n_tokens=vocabulary.size, d_model=16, n_layers=1, n_heads=2, d_ff=16)
    panel = np.arange(8, 30, dtype=np.uint32)
    preprocessing = Preprocessing(tokens=TOKENS, panel=panel_ids(panel, vocabulary))
    network = Network(CellModel(config), vocabulary=vocabulary, preprocessing=preprocessing, device="cpu")
    counts = random_counts(12, 40, density=0.9).toarray()
    counts[:, [3, 11]] = 1
    block = CellBlock.from_csr(sparse.csr_matrix(counts), np.arange(8, 48, dtype=np.uint32))
    check(network._tokeniser.tokenise(block, seed=0, epoch=0))


def test_a_gene_that_the_model_does_not_see_cannot_be_kept(atlas: Atlas, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="1 genes that are to be kept"):
        job(atlas, tmp_path / "run", panel=[11, 12, 13]).stream(0, 1)
