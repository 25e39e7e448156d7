"""Counts to tokens, a batch of cells at a time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cellmill.errors import ConfigError
from cellmill.tokens import kernel
from cellmill.tokens.block import CellBlock
from cellmill.tokens.config import TokenConfig
from cellmill.tokens.packed import PackedBatch

_MODES = {"bins": kernel.BINS, "midrank": kernel.MIDRANK, "log1p": kernel.LOG1P}


class Tokeniser:
    """Turns blocks of cells into packed batches.

    Parameters
    ----------
    config
        How.
    panel : uint32 [n], optional
        Tokens of the genes that are kept; all by default.

    Raises
    ------
    ConfigError
        Zeros of a panel are asked for, but there is no panel.
    """

    def __init__(self, config: TokenConfig, panel: npt.NDArray[np.uint32] | None = None) -> None:
        if config.include_zero == "panel" and panel is None:
            raise ConfigError(
                "Zeros can become tokens only of a panel of genes.",
                where="tokens.include_zero",
                fix="Set a panel (`panel.n_top`), or include_zero: none.",
            )
        self.config = config
        self.panel = panel
        self._panel = np.zeros(0, np.int64) if panel is None else np.sort(panel).astype(np.int64)
        self._place = np.zeros(0, np.int32)
        if panel is not None:
            self._place = np.full(int(self._panel.max(initial=0)) + 1, -1, np.int32)
            self._place[self._panel] = np.arange(len(self._panel), dtype=np.int32)

    def tokenise(
        self, block: CellBlock, *, seed: int, epoch: int, cells: npt.NDArray[np.int64] | None = None
    ) -> PackedBatch:
        """Tokenise a block.

        Parameters
        ----------
        block
            Raw counts.
        seed, epoch
            With the cell's id, the key of all chance: a cell's tokens never depend on the other cells of its batch.

        Returns
        -------
        PackedBatch
            ``gene`` is uint16 where it fits, else uint32; ``value`` is uint8 for bins, float32 otherwise.
        """
        if cells is not None:
            block = block.take(cells)
        config = self.config
        zeros = config.include_zero == "panel"
        genes = kernel.count_genes(block.indptr, block.token, self._place, len(self._panel), zeros, config.max_genes)
        cu_seqlens = np.zeros(block.n_cells + 1, np.int32)
        np.cumsum(genes + 1, out=cu_seqlens[1:])
        n_tokens = int(cu_seqlens[-1])
        largest = max(int(block.token.max(initial=0)), int(self._panel.max(initial=0)), kernel.CLS)
        gene = np.empty(n_tokens, np.uint16 if largest < 1 << 16 else np.uint32)
        value = np.empty(n_tokens, np.float32 if config.value == "log1p" else np.uint8)
        is_gen = np.empty(n_tokens, np.bool_)
        masked = np.empty(n_tokens if config.mask_ratio else 0, np.bool_)
        n_pcpt = np.empty(block.n_cells, np.int32)
        kernel.tokenise_cells(
            block.indptr,
            block.token,
            block.count,
            block.cell_id,
            self._place,
            self._panel,
            zeros,
            config.sampling == "expressed_first",
            _MODES[config.value],
            config.n_bins,
            config.normalize_total or 0.0,
            np.array(config.prompt_ratios, np.float64),
            config.mask_ratio,
            np.uint64(seed),
            np.uint64(epoch),
            cu_seqlens,
            gene,
            value,
            is_gen,
            masked,
            n_pcpt,
        )
        return PackedBatch(
            gene=gene,
            value=value,
            is_gen=is_gen,
            cu_seqlens=cu_seqlens,
            n_pcpt=n_pcpt,
            cell_id=block.cell_id,
            cls_value=config.cls_value,
            masked=masked if config.mask_ratio else None,
            labels=block.labels,
        )
