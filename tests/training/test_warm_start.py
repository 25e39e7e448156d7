"""Pretraining that goes on from a model after its atlas has grown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cellmill.atlas import Atlas
from cellmill.config import parse_config
from cellmill.errors import ConfigError, GeneMappingError
from cellmill.ingestion import ingest
from cellmill.models import load_model
from cellmill.training import PretrainConfig, pretrain
from cellmill.training.warm_start import GENES, grown, warm_start
from tests.ingestion.cells import config as ingestion
from tests.ingestion.cells import make_adata, write

SETTINGS: dict[str, Any] = {
    "name": "small",
    "tokens": {"max_genes": 24, "prompt_ratios": [0.5]},
    "stream": {"batch_size": 16, "lanes": 2},
    "model": {"d_model": 16, "n_layers": 1, "n_heads": 2, "d_ff": 16},
    "steps": 2,
    "workers": {"backend": "local"},
}


def config(atlas: Path, output: Path, **changes: Any) -> PretrainConfig:
    settings = {**SETTINGS, "atlas": str(atlas), "output": output, **changes}
    if "init" in changes:
        del settings["model"]
    return parse_config(PretrainConfig, settings, where="test")


@pytest.fixture(scope="module")
def grown_atlas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an atlas, and beside it a model of its first snapshot, before more cells with other genes came."""
    path = tmp_path_factory.mktemp("grown")
    ingest(ingestion(path / "atlas", write(make_adata(40, 30), path / "first.h5ad")))
    pretrain(config(path / "atlas", path / "before"))
    ingest(ingestion(path / "atlas", write(make_adata(40, 30, seed=1, start=20), path / "second.h5ad")))
    return path


def test_known_genes_keep_their_weights_and_new_ones_get_a_place(grown_atlas: Path, tmp_path: Path) -> None:
    before = grown_atlas / "before" / "model"
    after = pretrain(config(grown_atlas / "atlas", tmp_path / "after", init=before, optimizer={"lr": 1e-12}))
    atlas = Atlas.open(grown_atlas / "atlas")
    assert after.model.vocabulary.size == atlas.vocabulary().size == 8 + 50
    assert after.run.read_summary()["features new to the model"] == 20
    old, new = load_model(before).weights()[GENES], after.model.weights()[GENES]
    torch.testing.assert_close(new[: len(old)], old)
    assert len(new) == 58
    sources = {source.location.rsplit("/", 1)[-1] for source in after.model.lineage.sources()}
    assert sources == {"first.h5ad", "second.h5ad"}


def test_rows_follow_features_not_tokens() -> None:
    weights = {GENES: torch.arange(12.0).reshape(6, 2), "other": torch.ones(3)}
    fresh = torch.full((5, 2), -1.0)
    found = grown(weights, {GENES: fresh}, {GENES: np.array([0, 5, -1, 2, 1])})
    assert found[GENES].tolist() == [[0, 1], [10, 11], [-1, -1], [4, 5], [2, 3]]
    assert found["other"] is weights["other"]
    assert fresh.tolist() == [[-1, -1]] * 5


def test_what_the_weights_fix_is_refused(grown_atlas: Path, tmp_path: Path) -> None:
    before = grown_atlas / "before" / "model"
    vocabulary = Atlas.open(grown_atlas / "atlas").vocabulary()
    with pytest.raises(ConfigError, match="bins"):
        warm_start(config(grown_atlas / "atlas", tmp_path, init=before, tokens={"n_bins": 31}), vocabulary)
    shape = config(grown_atlas / "atlas", tmp_path).model
    reshaped = config(grown_atlas / "atlas", tmp_path, init=before).model_copy(update={"model": shape})
    with pytest.raises(ConfigError, match=r"model\.d_ff is fixed"):
        warm_start(reshaped, vocabulary)
    with pytest.raises(GeneMappingError, match="knows none"):
        warm_start(config(grown_atlas / "atlas", tmp_path, init=before), vocabulary.prefix(8))
