"""Sampling, prompts, masks, zeros and modalities; and that no cell depends on another."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import sparse

from cellmill.errors import ConfigError, CountsError
from cellmill.genes import Feature, Vocabulary
from cellmill.tokens import CellBlock, Modalities, TokenConfig, Tokeniser
from tests.platform.tokens.builders import block_of, permuted, random_block, values_of


def cells_of(packed: Any) -> list[dict[int, Any]]:
    return [values_of(packed, cell) for cell in range(packed.n_cells)]


def test_shape_of_a_packed_batch() -> None:
    block = random_block(20, 100)
    packed = Tokeniser(TokenConfig(max_genes=25)).tokenise(block, seed=0, epoch=0)
    assert packed.lengths.tolist() == [1 + min(25, n) for n in np.diff(block.indptr)]
    assert (packed.gene[packed.cu_seqlens[:-1]] == 1).all()
    assert (packed.value[packed.cu_seqlens[:-1]] == 0).all()
    assert packed.gene.dtype == np.uint16
    assert packed.value.dtype == np.uint8
    assert packed.cls_value == -2.0
    assert not packed.is_gen.any()
    assert packed.masked is None


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1 << 30), epoch=st.integers(0, 100), mode=st.sampled_from(["plain", "prompt", "mask"]))
def test_a_cell_depends_on_nothing_but_itself(seed: int, epoch: int, mode: str) -> None:
    block = random_block(12, 120, seed=seed % 7)
    extra: dict[str, dict[str, Any]] = {
        "plain": {},
        "prompt": {"prompt_ratios": (0.25, 0.75)},
        "mask": {"mask_ratio": 0.4},
    }
    tokeniser = Tokeniser(TokenConfig(max_genes=20, **extra[mode]))
    together = tokeniser.tokenise(block, seed=seed, epoch=epoch)
    order = np.random.default_rng(seed).permutation(12)[:7]
    some = tokeniser.tokenise(block.take(order), seed=seed, epoch=epoch)
    shuffled = tokeniser.tokenise(permuted(block, seed), seed=seed, epoch=epoch)
    whole, parts, mixed = cells_of(together), cells_of(some), cells_of(shuffled)
    assert parts == [whole[i] for i in order]
    # The order of the counts in the file is the order of tokens, and nothing more.
    assert mixed == whole
    assert (shuffled.n_pcpt == together.n_pcpt).all()
    again = tokeniser.tokenise(block, seed=seed, epoch=epoch + 1)
    assert cells_of(again) != whole


def test_the_sample_is_uniform_and_independent_of_the_bins() -> None:
    n = 4000
    block = block_of([[1.0] * 40] * n)
    packed = Tokeniser(TokenConfig(max_genes=10)).tokenise(block, seed=3, epoch=0)
    mask = packed.gene != 1
    genes, values = packed.gene[mask], packed.value[mask]
    seen = np.bincount(genes, minlength=48)[8:]
    # Each gene is in a quarter of the samples: binomial, five standard deviations.
    assert np.abs(seen - n / 4).max() < 5 * np.sqrt(n * 3 / 16)
    assert abs(values.mean() - 25.5) < 0.5
    pairs = np.zeros((40, 40))
    for cell in range(n):
        chosen = packed.gene[packed.cu_seqlens[cell] + 1 : packed.cu_seqlens[cell + 1]].astype(int) - 8
        pairs[np.ix_(chosen, chosen)] += 1
    expected = n * (10 * 9) / (40 * 39)
    off = pairs[~np.eye(40, dtype=bool)]
    assert np.abs(off - expected).max() < 6 * np.sqrt(expected)


def test_prompts() -> None:
    block = random_block(400, 100)
    packed = Tokeniser(TokenConfig(max_genes=25, prompt_ratios=(0.25, 0.5))).tokenise(block, seed=0, epoch=0)
    genes = packed.lengths - 1
    n_gen = packed.lengths - packed.n_pcpt
    quarter, half = np.floor(genes * 0.25), np.floor(genes * 0.5)
    assert ((n_gen == quarter) | (n_gen == half)).all()
    assert 100 < (n_gen == half).sum() < 300
    for cell in range(packed.n_cells):
        marks = packed.is_gen[packed.cu_seqlens[cell] : packed.cu_seqlens[cell + 1]]
        assert marks.tolist() == [False] * packed.n_pcpt[cell] + [True] * n_gen[cell]
        tokens = packed.gene[packed.cu_seqlens[cell] : packed.cu_seqlens[cell + 1]]
        assert np.unique(tokens).size == tokens.size
    # Generative tokens keep their values: they are the targets.
    assert (packed.value[packed.is_gen] > 0).all()


def test_which_genes_are_generated_is_uniform() -> None:
    n = 4000
    packed = Tokeniser(TokenConfig(prompt_ratios=(0.5,))).tokenise(block_of([[1.0] * 20] * n), seed=1, epoch=2)
    seen = np.bincount(packed.gene[packed.is_gen], minlength=28)[8:]
    assert np.abs(seen - n / 2).max() < 5 * np.sqrt(n / 4)


def test_masks_never_hide_cls() -> None:
    block = random_block(300, 100)
    packed = Tokeniser(TokenConfig(max_genes=30, mask_ratio=0.4, cls_value=0.0)).tokenise(block, seed=0, epoch=0)
    assert packed.masked is not None
    assert not packed.masked[packed.cu_seqlens[:-1]].any()
    counts = np.add.reduceat(packed.masked.astype(int), packed.cu_seqlens[:-1])
    assert (counts == np.floor((packed.lengths - 1) * 0.4)).all()
    # All tokens stay, and hidden values stay as targets.
    plain = Tokeniser(TokenConfig(max_genes=30)).tokenise(block, seed=0, epoch=0)
    assert cells_of(packed) == cells_of(plain)
    assert (packed.n_pcpt == packed.lengths).all()


def test_panel() -> None:
    block = random_block(30, 100)
    panel = np.arange(20, 50, dtype=np.uint32)
    packed = Tokeniser(TokenConfig(value="midrank"), panel).tokenise(block, seed=0, epoch=0)
    for cell, found in enumerate(cells_of(packed)):
        part = slice(block.indptr[cell], block.indptr[cell + 1])
        inside = np.isin(block.token[part], panel)
        assert sorted(found) == block.token[part][inside].tolist()
        # Quantiles are those of the panel's genes.
        alone = CellBlock(
            block.token[part][inside], block.count[part][inside], np.array([0, inside.sum()]), block.cell_id[[cell]]
        )
        assert found == cells_of(Tokeniser(TokenConfig(value="midrank")).tokenise(alone, seed=0, epoch=0))[0]


def with_measured(block: CellBlock, *sets: list[int]) -> CellBlock:
    which = np.arange(block.n_cells) % len(sets)
    return replace(
        block,
        measured=tuple(np.array(tokens, np.uint32) for tokens in sets),
        measured_set=which.astype(np.int32),
    )


def test_zeros_of_the_panel_are_those_that_were_measured() -> None:
    block = with_measured(block_of([[5.0, 1.0], [2.0, 2.0, 9.0]]), list(range(8, 16)), list(range(8, 14)))
    panel = np.array([9, 10, 12, 15], np.uint32)
    packed = Tokeniser(TokenConfig(value="midrank", include_zero="panel"), panel).tokenise(block, seed=0, epoch=0)
    one, two = cells_of(packed)
    assert set(one) == {9, 10, 12, 15}
    # The second cell's data set did not measure gene 15: that is not a zero.
    assert set(two) == {9, 10, 12}
    assert [one[t] > 0 for t in sorted(one)] == [True, False, False, False]
    assert [two[t] > 0 for t in sorted(two)] == [True, True, False]
    everything = Tokeniser(TokenConfig(include_zero="all")).tokenise(block, seed=0, epoch=0)
    assert [set(cell) for cell in cells_of(everything)] == [set(range(8, 16)), set(range(8, 14))]


def test_zeros_do_not_move_the_bins() -> None:
    block = random_block(20, 60)
    measured = with_measured(block, list(range(8, 68)))
    without = cells_of(Tokeniser(TokenConfig()).tokenise(block, seed=4, epoch=1))
    zeros = cells_of(Tokeniser(TokenConfig(include_zero="all")).tokenise(measured, seed=4, epoch=1))
    for cell, found in enumerate(zeros):
        assert {token: value for token, value in found.items() if value} == without[cell]
        assert set(found) == set(range(8, 68))


def test_expressed_first_takes_zeros_only_to_fill_up() -> None:
    block = with_measured(random_block(50, 60), list(range(8, 68)))
    config = TokenConfig(include_zero="all", sampling="expressed_first", max_genes=20)
    found = cells_of(Tokeniser(config).tokenise(block, seed=0, epoch=0))
    for cell, n in enumerate(np.diff(block.indptr)):
        assert sum(value > 0 for value in found[cell].values()) == min(20, n)
        assert len(found[cell]) == 20
    uniform = TokenConfig(include_zero="all", max_genes=20)
    mixed = cells_of(Tokeniser(uniform).tokenise(block, seed=0, epoch=0))
    share = np.mean([value > 0 for cell in mixed for value in cell.values()])
    assert 0.2 < share < 0.4


def test_named_genes_stay_and_preferred_ones_come_first() -> None:
    block = block_of([[1.0] * 50] * 200)
    always, prefer = np.array([10, 11], np.uint32), np.arange(20, 40, dtype=np.uint32)
    found = cells_of(
        Tokeniser(TokenConfig(max_genes=12), always=always, prefer=prefer).tokenise(block, seed=0, epoch=0)
    )
    assert all({10, 11} < set(cell) < {10, 11, *range(20, 40)} for cell in found)
    assert set().union(*found) == {10, 11, *range(20, 40)}


def test_modalities_are_binned_apart_and_peaks_keep_one_value() -> None:
    features = [Feature(f"g{i}", f"g{i}") for i in range(30)]
    features += [Feature(f"p{i}", f"p{i}", modality="protein") for i in range(10)]
    features += [Feature(f"a{i}", f"a{i}", modality="atac") for i in range(5)]
    modalities = Modalities.of(Vocabulary(features))
    assert modalities.names == ("rna", "protein", "atac")
    rng = np.random.default_rng(0)
    counts = [*rng.geometric(0.5, 30), *rng.geometric(0.01, 10), *rng.geometric(0.5, 5)]
    cell = block_of([[float(x) for x in counts]], np.uint16)
    config = TokenConfig(value="midrank", binary_value=7)
    found = cells_of(Tokeniser(config, modalities=modalities).tokenise(cell, seed=0, epoch=0))[0]
    genes = cells_of(Tokeniser(config).tokenise(block_of([counts[:30]], np.uint16), seed=0, epoch=0))[0]
    proteins = cells_of(Tokeniser(config).tokenise(block_of([counts[30:40]], np.uint16), seed=0, epoch=0))[0]
    assert [found[8 + i] for i in range(30)] == list(genes.values())
    assert [found[38 + i] for i in range(10)] == list(proteins.values())
    assert {found[48 + i] for i in range(5)} == {7}
    logs = cells_of(
        Tokeniser(TokenConfig(value="log1p", normalize_total=100), modalities=modalities).tokenise(
            cell, seed=0, epoch=0
        )
    )[0]
    scale = 100 / sum(counts[:30])
    np.testing.assert_allclose([logs[8 + i] for i in range(30)], np.log1p(np.array(counts[:30]) * scale), rtol=1e-6)


def test_empty_cells_and_empty_blocks() -> None:
    packed = Tokeniser(TokenConfig(prompt_ratios=(0.5,))).tokenise(block_of([[], [4.0], []]), seed=0, epoch=0)
    assert packed.lengths.tolist() == [1, 2, 1]
    assert packed.n_pcpt.tolist() == [1, 2, 1]
    nothing = Tokeniser(TokenConfig()).tokenise(block_of([]), seed=0, epoch=0)
    assert (nothing.n_cells, nothing.n_tokens) == (0, 0)


def test_wide_vocabularies_have_wide_tokens() -> None:
    block = block_of([[1.0, 2.0, 3.0]])
    wide = replace(block, token=block.token.astype(np.uint32) + 300_000)
    packed = Tokeniser(TokenConfig(), np.array([300_009], np.uint32)).tokenise(wide, seed=0, epoch=0)
    assert packed.gene.dtype == np.uint32
    assert packed.gene.tolist() == [1, 300_009]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000))
def test_from_csr(seed: int) -> None:
    rng = np.random.default_rng(seed)
    dense = rng.integers(0, 4, (6, 30)) * rng.integers(0, 200, (6, 30))
    tokens = rng.permutation(np.arange(8, 38)).astype(np.uint32)
    block = CellBlock.from_csr(sparse.csr_matrix(dense.astype(np.float32)), tokens)
    assert block.count.dtype.kind == "u"
    order = rng.permutation(30)
    again = CellBlock.from_csr(sparse.csr_matrix(dense[:, order]), tokens[order])
    assert (block.cell_id == again.cell_id).all()
    tokeniser = Tokeniser(TokenConfig(max_genes=8))
    first, second = (tokeniser.tokenise(b, seed=0, epoch=0) for b in (block, again))
    assert cells_of(first) == cells_of(second)


def test_from_csr_drops_stored_zeros_and_refuses_negatives() -> None:
    matrix = sparse.csr_matrix(np.array([[1.0, 2.0], [0.0, 3.0]]))
    matrix.data[0] = 0.0
    block = CellBlock.from_csr(matrix, np.array([8, 9], np.uint32))
    assert block.token.tolist() == [9, 9]
    assert block.indptr.tolist() == [0, 1, 2]
    halves = CellBlock.from_csr(matrix * 0.5, np.array([8, 9], np.uint32))
    assert halves.count.dtype == np.float32
    with pytest.raises(CountsError, match="negative"):
        CellBlock.from_csr(-matrix, np.array([8, 9], np.uint32))


def test_copies_of_a_cell_have_other_chances_and_the_first_is_the_cell_itself() -> None:
    block = random_block(3, 60)
    tokeniser = Tokeniser(TokenConfig(max_genes=8, prompt_ratios=(0.5,)))
    chosen, copies = np.array([1, 1, 1, 2, 1]), np.array([0, 1, 2, 0, 1])
    packed = tokeniser.tokenise(block.take(chosen), seed=4, epoch=2, copies=copies)
    alone = cells_of(tokeniser.tokenise(block.take(np.array([1, 2])), seed=4, epoch=2))
    found = [values_of(packed, cell) for cell in range(5)]
    assert packed.cell_id.tolist() == block.cell_id[chosen].tolist()
    assert cells_of(packed.part(0, 1)) == alone[:1]
    assert cells_of(packed.part(3, 4)) == alone[1:]
    assert found[1] == found[4]
    assert len({tuple(sorted(cell)) for cell in found[:3]}) == 3


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match="panel of genes"):
        Tokeniser(TokenConfig(include_zero="panel"))
    with pytest.raises(ConfigError, match="always"):
        Tokeniser(TokenConfig(max_genes=1), always=np.array([8, 9], np.uint32))
    with pytest.raises(ConfigError, match="measured"):
        Tokeniser(TokenConfig(include_zero="all")).tokenise(block_of([[1.0]]), seed=0, epoch=0)
    with pytest.raises(ValidationError, match="two ways"):
        TokenConfig(prompt_ratios=(0.5,), mask_ratio=0.4)
    with pytest.raises(ConfigError, match="not told which"):
        Tokeniser(TokenConfig(sampling="variable_first"))
