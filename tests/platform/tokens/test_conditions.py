"""The third channel: conditions of cells and of single tokens."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellmill.errors import ConfigError
from cellmill.tokens import Conditions, TokenConfig, Tokeniser
from tests.platform.tokens.builders import random_block

CLASSES = 3
OWN = st.lists(st.tuples(st.integers(8, 47), st.integers(1, 9)), max_size=4, unique_by=lambda pair: pair[0])


@given(
    codes=st.lists(st.integers(-1, CLASSES - 1), min_size=10, max_size=10),
    cell=st.lists(st.integers(0, 9), min_size=CLASSES, max_size=CLASSES),
    own=st.lists(OWN, min_size=CLASSES, max_size=CLASSES),
)
def test_each_token_has_its_own_condition_or_that_of_its_cell(
    codes: list[int], cell: list[int], own: list[list[tuple[int, int]]]
) -> None:
    block = replace(random_block(10, 40), labels={"what": np.array(codes, np.int32)})
    tokeniser = Tokeniser(TokenConfig(max_genes=9), conditions=Conditions.of("what", cell, own))
    order = np.array([4, 0, 9, 4, 2])
    packed = tokeniser.tokenise(block.take(order), seed=1, epoch=0)
    plain = Tokeniser(TokenConfig(max_genes=9)).tokenise(block.take(order), seed=1, epoch=0)
    assert (packed.gene == plain.gene).all()
    assert (packed.value == plain.value).all()
    assert packed.condition is not None
    assert packed.condition.dtype == np.uint16
    for i, number in enumerate(order.tolist()):
        part = slice(packed.cu_seqlens[i], packed.cu_seqlens[i + 1])
        code = codes[number]
        expected = [dict(own[code]).get(token, cell[code]) if code >= 0 else 0 for token in packed.gene[part].tolist()]
        assert packed.condition[part].tolist() == expected


def test_a_gene_that_was_knocked_out_is_a_token_where_zeros_are() -> None:
    block = random_block(6, 20)
    gone = int(np.setdiff1d(np.arange(8, 28), block.token[block.indptr[0] : block.indptr[1]])[0])
    block = replace(
        block,
        labels={"perturbation": np.zeros(6, np.int32)},
        measured=(np.arange(8, 28, dtype=np.uint32),),
        measured_set=np.zeros(6, np.int32),
    )
    conditions = Conditions.of("perturbation", [0], [[(gone, 1)]])
    packed = Tokeniser(TokenConfig(include_zero="all"), conditions=conditions).tokenise(block, seed=0, epoch=0)
    assert packed.condition is not None
    assert np.flatnonzero(packed.condition).tolist() == np.flatnonzero(packed.gene == gone).tolist()
    assert packed.condition.sum() == 6
    assert packed.value[np.flatnonzero(packed.condition)[0]] == 0


def test_what_does_not_fit_is_refused() -> None:
    block = replace(random_block(3, 20), labels={"what": np.array([0, 2, 1], np.int32)})
    with pytest.raises(ConfigError, match="65,535"):
        Conditions.of("what", [1 << 16])
    with pytest.raises(ConfigError, match="2 lists of tokens for 1 classes"):
        Conditions.of("what", [0], [[], []])
    with pytest.raises(ConfigError, match="no label 'other'"):
        Tokeniser(TokenConfig(), conditions=Conditions.of("other", [1])).tokenise(block, seed=0, epoch=0)
    with pytest.raises(ConfigError, match="Class 2 of 'what'"):
        Tokeniser(TokenConfig(), conditions=Conditions.of("what", [1, 1])).tokenise(block, seed=0, epoch=0)
