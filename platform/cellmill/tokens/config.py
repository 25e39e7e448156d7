"""How a cell becomes tokens."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from cellmill.config import Config


class TokenConfig(Config):
    """How a cell becomes tokens.

    Attributes
    ----------
    value
        ``bins``: scGPT's quantile bins of the cell, ties drawn at random; ``midrank``: the same with ties at the
        middle of their bins, without chance; ``log1p``: logarithms of counts, normalised if `normalize_total` is set.
    n_bins
        Bins, that of zero included.
    binary_value
        Value of every feature of a binary modality (peaks), which is never binned.
    max_genes
        Genes of a cell at most, without ``<cls>``; of more, a random sample is taken anew each epoch.
    sampling
        ``uniform``; ``expressed_first``, which takes zeros only where expressed genes do not fill the cell; or
        ``variable_first``, which takes variable genes before all others. Which these are is no matter of a cell: see
        `Tokeniser`, and ``variable`` in the configuration of training.
    keep
        Ids of genes that stay whenever a cell has more genes than `max_genes`.
    include_zero
        ``none``: expressed genes only; ``panel``: every gene of the panel that was measured; ``all``: every gene that
        was measured.
    normalize_total
        Counts of a cell are scaled to this sum before ``log1p``. Bins stay as they are, with it or without: quantiles
        of a cell do not change with scale or logarithm.
    cls_value
        Value of ``<cls>``: -2 in scGPT's pretraining and embedding, 0 in its fine-tuning.
    prompt_ratios
        Shares of genes to generate, of which each cell draws one; empty for none.
    mask_ratio
        Share of a cell's genes whose values are hidden; ``<cls>`` never is.
    """

    value: Literal["bins", "midrank", "log1p"] = "bins"
    n_bins: int = Field(default=51, ge=3, le=253)
    binary_value: int = Field(default=1, ge=1, le=252)
    max_genes: int = Field(default=1200, ge=1)
    sampling: Literal["uniform", "expressed_first", "variable_first"] = "uniform"
    keep: tuple[str, ...] = ()
    include_zero: Literal["none", "panel", "all"] = "none"
    normalize_total: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    cls_value: float = Field(default=-2.0, allow_inf_nan=False)
    prompt_ratios: tuple[float, ...] = ()
    mask_ratio: float = Field(default=0.0, ge=0, lt=1)

    @field_validator("prompt_ratios")
    @classmethod
    def _shares(cls, ratios: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 < ratio < 1 for ratio in ratios):
            raise ValueError("every prompt ratio must lie between 0 and 1")
        return ratios

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.prompt_ratios and self.mask_ratio:
            raise ValueError("prompt_ratios and mask_ratio are two ways to train; give one of them")
        if self.binary_value >= self.n_bins:
            raise ValueError("binary_value must be below n_bins")
        return self
