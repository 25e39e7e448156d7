"""Counts to tokens, a batch of cells at a time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cellmill.errors import ConfigError, CountsError
from cellmill.memory import Memory
from cellmill.tokens import kernels
from cellmill.tokens.block import CellBlock
from cellmill.tokens.conditions import Conditions
from cellmill.tokens.config import TokenConfig
from cellmill.tokens.counting import DROPPED, count_candidates
from cellmill.tokens.kernel_types import Result, Rules, Source, make_scratch
from cellmill.tokens.modalities import Modalities
from cellmill.tokens.packed import PackedBatch

U8 = npt.NDArray[np.uint8]
U32 = npt.NDArray[np.uint32]
I64 = npt.NDArray[np.int64]

_MODES = {"bins": kernels.BINS, "midrank": kernels.MIDRANK, "log1p": kernels.LOG1P}
_ALWAYS, _PREFERRED, _ORDINARY = 0, 1, 2


class Tokeniser:
    """Turns blocks of cells into packed batches.

    Parameters
    ----------
    config
        How.
    panel : uint32 [n], optional
        Tokens of the genes that are kept; all by default.
    always, prefer : uint32 [n], optional
        Tokens that are sampled first, if a cell has them: those of `always` before all others, then those of `prefer`
        (such as highly variable genes).
    modalities
        Of the vocabulary; by default all tokens are genes.
    conditions
        Of cells, by a label that the blocks must have; by default tokens have none.

    Raises
    ------
    ConfigError
        Zeros of a panel are asked for, but there is no panel; `always` alone fills a cell; or variable genes are to
        come first, but there is no `prefer`.
    """

    def __init__(
        self,
        config: TokenConfig,
        panel: U32 | None = None,
        *,
        always: U32 | None = None,
        prefer: U32 | None = None,
        modalities: Modalities | None = None,
        conditions: Conditions | None = None,
    ) -> None:
        if config.include_zero == "panel" and panel is None:
            raise ConfigError(
                "Zeros can become tokens only of a panel of genes.",
                where="tokens.include_zero",
                fix="Set a panel (`panel.n_top`), or include_zero: none.",
            )
        if config.sampling == "variable_first" and prefer is None:
            raise ConfigError(
                "Variable genes are to be sampled first, but it is not told which these are.",
                where="tokens.sampling",
                fix="Give the tokeniser the genes that it shall `prefer`.",
            )
        if always is not None and always.size > config.max_genes:
            raise ConfigError(
                f"{always.size} genes are always to be kept, but a cell has at most {config.max_genes}.",
                where="tokens.max_genes",
                fix="Raise max_genes, or name fewer genes.",
            )
        self.config = config
        self.panel = panel
        self._conditions = conditions
        self._rank, self._other = _ranks(panel, always, prefer)
        several = modalities is not None and (len(modalities.names) > 1 or bool(modalities.binary[0]))
        binary = modalities.binary if several and modalities is not None else np.zeros(1, bool)
        self._rules = Rules(
            rank=self._rank,
            other_rank=self._other,
            ranked=always is not None or prefer is not None or config.sampling == "expressed_first",
            zeros_last=config.sampling == "expressed_first",
            group_of=modalities.of_token if several and modalities is not None else np.zeros(0, np.uint8),
            fixed=np.where(binary, config.binary_value, 0).astype(np.int64),
            integers=True,
            mode=_MODES[config.value],
            quantiles=np.linspace(0, 1, config.n_bins - 1),
            target_sum=float(config.normalize_total or 0.0),
            ratios=np.array(config.prompt_ratios, np.float64),
            mask_ratio=float(config.mask_ratio),
            seed=np.uint64(0),
            epoch=np.uint64(0),
        )

    def longest(self, expressed: int, measured: int) -> int:
        """Return the most tokens, ``<cls>`` included, of cells that have no more genes than these.

        Parameters
        ----------
        expressed, measured
            Genes of a cell that have a count, and that were measured.
        """
        genes = expressed if self.config.include_zero == "none" else measured
        return 1 + min(genes, self.config.max_genes, genes if self.panel is None else self.panel.size)

    def tokenise(
        self, block: CellBlock, *, seed: int, epoch: int, copies: I64 | None = None, memory: Memory | None = None
    ) -> PackedBatch:
        """Tokenise the cells of a block.

        Parameters
        ----------
        block
            Raw counts.
        seed, epoch
            With the cell's id, the key of all chance: a cell's tokens never depend on the other cells of its batch,
            nor on the order of its counts.
        copies : int64 [n], optional
            How often each of the cells came before in the epoch: a part of the key, so that a cell that is drawn
            several times gives other tokens each time.
        memory
            Where the tokens are to be; by default in new memory.

        Returns
        -------
        PackedBatch
            ``gene`` has the block's type of tokens; ``value`` is uint8 for bins, float32 for logarithms.

        Raises
        ------
        CountsError
            A count is zero, negative, infinite or not a number.
        ConfigError
            The block lacks the label that tells conditions, or what was measured where zeros are to become tokens.
        """
        config, memory = self.config, memory or Memory()
        measured, measured_at, measured_set = self._measured(block)
        candidates = self._candidates(block, measured_at, measured_set)
        genes = np.minimum(candidates, config.max_genes)
        cu_seqlens = np.zeros(block.n_cells + 1, np.int32)
        np.cumsum(genes + 1, out=cu_seqlens[1:])
        n_tokens = int(cu_seqlens[-1])
        result = Result(
            cu_seqlens=cu_seqlens,
            gene=memory.empty(n_tokens, block.token.dtype),
            value=memory.empty(n_tokens, np.float32 if config.value == "log1p" else np.uint8),
            masked=memory.empty(n_tokens if config.mask_ratio else 0, np.bool_),
            n_pcpt=np.empty(block.n_cells, np.int32),
        )
        source = Source(block.token, block.count, block.indptr, block.cell_id, measured, measured_at, measured_set)
        rules = self._rules._replace(
            integers=block.count.dtype.kind == "u", seed=np.uint64(seed), epoch=np.uint64(epoch)
        )
        longest = int(max(candidates.max(initial=0), np.diff(block.indptr).max(initial=0)))
        scratch = make_scratch(source, rules, result, longest)
        again = np.zeros(0, np.int64) if copies is None else copies
        bad = kernels.tokenise_cells(source, again, rules, scratch, result)
        if bad >= 0:
            raise CountsError(
                "A stored count is zero, negative, infinite or not a number.",
                where=f"cell {int(block.cell_id[bad])}",
                fix="Give raw counts, without explicit zeros.",
            )
        if result.value.dtype == np.float32:
            result.value[cu_seqlens[:-1]] = config.cls_value
        return PackedBatch(
            gene=result.gene,
            value=result.value,
            cu_seqlens=cu_seqlens,
            n_pcpt=result.n_pcpt,
            cell_id=block.cell_id,
            cls_value=config.cls_value,
            condition=self._condition(block, result),
            masked=result.masked if config.mask_ratio else None,
            labels=block.labels,
        )

    def _condition(self, block: CellBlock, result: Result) -> npt.NDArray[np.uint16] | None:
        conditions = self._conditions
        if conditions is None:
            return None
        if conditions.label not in block.labels:
            raise ConfigError(
                f"The cells have no label {conditions.label!r}, which tells their conditions.",
                where="conditions",
                fix="Stream that label with the cells.",
            )
        return conditions.of_tokens(result.gene, result.cu_seqlens, block.labels[conditions.label])

    def _candidates(self, block: CellBlock, measured_at: I64, measured_set: npt.NDArray[np.int32]) -> I64:
        """Return how many genes each cell has to sample from, int64 [n]."""
        if measured_set.size:
            return np.diff(measured_at)[measured_set]
        if not self._rank.size:
            return np.diff(block.indptr)
        found = np.empty(block.n_cells, np.int64)
        count_candidates(block.token, block.indptr, self._rank, self._other, found)
        return found

    def _measured(self, block: CellBlock) -> tuple[npt.NDArray[np.generic], I64, npt.NDArray[np.int32]]:
        """Return the tokens that become zeros where they have no count; see `CellBlock.measured`."""
        if self.config.include_zero == "none" or not block.n_cells:
            return np.zeros(0, block.token.dtype), np.zeros(1, np.int64), np.zeros(0, np.int32)
        if not block.measured:
            raise ConfigError(
                "It is not known which genes were measured, so zeros cannot become tokens.",
                where="tokens.include_zero",
                fix="Make the block with its `measured` tokens, or set include_zero: none.",
            )
        kept = [tokens[self._rank_of(tokens) != DROPPED] for tokens in block.measured]
        starts = np.concatenate([[0], np.cumsum([tokens.size for tokens in kept])]).astype(np.int64)
        return np.concatenate(kept).astype(block.token.dtype), starts, block.measured_set

    def _rank_of(self, tokens: U32) -> U8:
        if not self._rank.size:
            return np.full(tokens.size, self._other, np.uint8)
        inside = np.minimum(tokens, self._rank.size - 1)
        return np.where(tokens < self._rank.size, self._rank[inside], np.uint8(self._other))


def _ranks(panel: U32 | None, always: U32 | None, prefer: U32 | None) -> tuple[U8, int]:
    """Return the rank of each token up to the largest that is named, and that of all others."""
    named = [tokens for tokens in (panel, always, prefer) if tokens is not None]
    if not named:
        return np.zeros(0, np.uint8), _ORDINARY
    other = _ORDINARY if panel is None else DROPPED
    rank = np.full(1 + max(int(tokens.max(initial=0)) for tokens in named), other, np.uint8)
    if panel is not None:
        rank[panel] = _ORDINARY
    for tokens, value in ((prefer, _PREFERRED), (always, _ALWAYS)):
        if tokens is not None:
            # A gene outside the panel stays outside.
            rank[tokens[rank[tokens] != DROPPED]] = value
    return rank, other
