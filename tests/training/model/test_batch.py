from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from cellmill.errors import IntegrityError
from cellmill.training.model import TorchBatch
from tests.training.model.packs import make_pack

SHAPES = [(5, 4), (3, 0), (1, 6), (5, 4)]


def test_channels_and_targets_follow_the_cells() -> None:
    pack = replace(make_pack(SHAPES), labels={"donor": np.array([7, -1, 9, 3], np.int32)})
    batch = TorchBatch.from_packed(pack)
    assert (batch.n_cells, batch.n_tokens, batch.n_targets) == (4, 28, 14)
    gene = batch.to_packed_order(batch.genes[batch.gene_row])
    assert gene.tolist() == pack.gene.tolist()
    cell = np.repeat(np.arange(4), [9, 3, 7, 9])
    assert batch.to_packed_order(batch.token_cell()).tolist() == cell.tolist()
    found = sorted(zip(batch.target_cell.tolist(), batch.target_value.tolist(), strict=True))
    assert found == sorted(zip(cell[pack.is_gen].tolist(), pack.value[pack.is_gen].tolist(), strict=True))
    assert batch.labels["donor"].ids.tolist() == [7, -1, 9, 3]
    assert (batch.labels["donor"].n_known, batch.labels["donor"].largest) == (3, 9)


def test_equal_cells_keep_their_order() -> None:
    batch = TorchBatch.from_packed(make_pack([(4, 3)] * 5))
    assert batch.order is None
    x = torch.arange(35)
    assert batch.to_packed_order(x) is x


def test_masked_tokens_are_targets() -> None:
    pack = make_pack([(4, 2)])
    batch = TorchBatch.from_packed(replace(pack, masked=np.array([0, 0, 1, 0, 0, 0], bool)))
    assert batch.targets.tolist() == [2, 4, 5]
    assert batch.target_value.tolist() == pack.value[[2, 4, 5]].tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_pcpt": np.array([5, 3, 0, 5])}, "no perceptual"),
        ({"n_pcpt": np.array([5, 3, 2, 5])}, "generative tokens"),
        ({"n_pcpt": np.array([5, 3, 1])}, "one per cell"),
        ({"gene": np.zeros(27, np.uint16)}, "28 tokens"),
        ({"masked": np.ones(28, bool)}, "<cls> is masked"),
        ({"labels": {"donor": np.zeros(3, np.int32)}}, "one per cell"),
    ],
)
def test_malformed_batches_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(IntegrityError, match=message):
        TorchBatch.from_packed(replace(make_pack(SHAPES), **change))
