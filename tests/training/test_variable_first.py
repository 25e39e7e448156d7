"""Variable genes come first in pretraining, in fine-tuning and in inference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from cellmill.atlas import Atlas
from cellmill.config import parse_config
from cellmill.errors import ConfigError
from cellmill.models import ModelFolder
from cellmill.tokens import CellBlock, PackedBatch, TokenConfig, highly_variable
from cellmill.training import pretrain
from cellmill.training.config import FinetuneConfig
from cellmill.training.inference import Predictor
from cellmill.training.job import Cells, Job
from cellmill.training.setup import choose_variable
from cellmill.training.start import start_from
from tests.training.test_pretraining import config

TOKENS: dict[str, Any] = {"max_genes": 12, "sampling": "variable_first", "prompt_ratios": [0.5]}
MANY = {"n_top": 30}


def check(packed: PackedBatch, variable: set[int]) -> None:
    assert packed.n_cells
    for start, stop in zip(packed.cu_seqlens[:-1], packed.cu_seqlens[1:], strict=True):
        assert stop - start == 13
        assert set(packed.gene[start + 1 : stop].tolist()) <= variable


@pytest.fixture(scope="module")
def model(atlas: str, tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    out = tmp_path_factory.mktemp("variable") / "run"
    return pretrain(config(atlas, out, where=None, panel=None, tokens=TOKENS, variable=MANY, steps=1)).model


def test_inference_samples_the_genes_that_were_variable_in_training(atlas: str, model: ModelFolder) -> None:
    selection = Atlas.open(atlas).snapshot().select()
    chosen = set(highly_variable(selection, n_top=30).tolist())
    predictor = Predictor(model, device="cpu")
    assert set(predictor.vocabulary.lookup(model.preprocessing["variable"]).tolist()) == chosen
    block = CellBlock.from_csr(sparse.csr_matrix(np.ones((9, 200), np.uint32)), np.arange(8, 208, dtype=np.uint32))
    check(predictor._tokeniser.tokenise(block, seed=0, epoch=0), chosen)


def test_fine_tuning_takes_those_of_the_model_unless_it_has_its_own(
    atlas: str, model: ModelFolder, tmp_path: Path
) -> None:
    opened = Atlas.open(atlas)
    selection = opened.snapshot().select("donor == 'd2'")

    def start(**changes: Any) -> Any:
        told = {"name": "x", "output": tmp_path / "run", "atlas": atlas, "steps": 1, "init": model.path, **changes}
        read = parse_config(FinetuneConfig, told, where="test")
        vocabulary = opened.vocabulary()
        return start_from(read, run=tmp_path, selection=selection, vocabulary=vocabulary, n_classes=3)

    found = start()
    assert sorted(found.preprocessing.variable) == sorted(model.preprocessing["variable"])
    told = {"name": "x", "output": tmp_path / "run", "atlas": atlas, "steps": 1}
    cells = Cells(atlas, 1, None, found.preprocessing.tokens, found.panel, found.prefer)
    job = Job(tmp_path, parse_config(FinetuneConfig, told, where="test"), cells, "annotate", found.model, None)
    packed = PackedBatch.concatenate(list(job.stream(0, 1).epoch(0)))
    first = np.isin(packed.gene, found.prefer)
    own = np.add.reduceat(first, packed.cu_seqlens[:-1])
    assert (own <= 12).all()
    assert own.mean() > 9  # about half of the thirty are expressed in a cell
    assert set(start(variable=MANY).prefer.tolist()) == set(highly_variable(selection, n_top=30).tolist())
    assert start(tokens={"max_genes": 12}).prefer is None


def test_genes_that_would_never_be_used_are_refused(atlas: str, tmp_path: Path) -> None:
    read = config(atlas, tmp_path, variable=MANY)
    opened = Atlas.open(atlas)
    with pytest.raises(ConfigError, match="in vain"):
        choose_variable(tmp_path, opened.snapshot().select(), opened.vocabulary(), read.variable, TokenConfig())
