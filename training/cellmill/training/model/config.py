"""What a model is made of: a frozen configuration and two presets."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from cellmill.config import Config, parse_config

PRESETS: dict[str, dict[str, Any]] = {
    # The published scGPT shape: post-norm, ReLU, feed-forward as wide as the model.
    "scgpt": {
        "d_model": 512,
        "n_layers": 12,
        "n_heads": 8,
        "d_ff": 512,
        "dropout": 0.2,
        "norm": "post",
        "activation": "relu",
    },
    # For new models: pre-norm, heads of 128 (the width flash kernels are fastest at), no dropout.
    "modern": {
        "d_model": 512,
        "n_layers": 12,
        "n_heads": 4,
        "d_ff": 2048,
        "dropout": 0.0,
        "norm": "pre",
        "activation": "gelu",
    },
}


class ModelConfig(Config):
    """Shape and options of a :class:`~cellmill.training.model.CellModel`.

    Attention dropout does not exist here: flash kernels have none, and the merge of the own key (see
    ``attention``) is exact only without it. ``dropout`` acts on residual branches and on value embeddings.
    """

    n_tokens: int = Field(gt=0, description="Vocabulary size, special tokens included.")
    d_model: int = Field(default=512, gt=0)
    n_layers: int = Field(default=12, gt=0)
    n_heads: int = Field(default=8, gt=0)
    d_ff: int = Field(default=512, gt=0)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    norm: Literal["post", "pre"] = "post"
    activation: Literal["relu", "gelu"] = "relu"
    gen_out_proj: Literal["shared", "identity"] = Field(
        default="shared",
        description="Whether attention outputs of generative tokens pass through out_proj (shared) or skip it.",
    )
    value_encoder: Literal["continuous", "category"] = "continuous"
    n_bins: int = Field(default=51, gt=1, le=253, description="Values 0 .. n_bins - 1 of a binned value channel.")
    n_conditions: int = Field(default=0, ge=0, description="Condition ids 1 .. n_conditions; 0 means none.")
    n_batch_labels: int = Field(default=0, ge=0, description="Classes of the label `batch`, used at the decoders.")
    n_modalities: int = Field(default=0, ge=0, description="Modalities of tokens, used at the decoders.")
    n_classes: int = Field(default=0, ge=0, description="Classes of the cell classifier; 0 builds none.")
    n_layers_cls: int = Field(default=3, gt=0, description="Linear layers of the cell classifier, the last included.")
    mvc: bool = Field(default=True, description="Build the decoder that predicts values from the cell embedding.")
    attention: Literal["auto", "flash", "sdpa"] = "auto"

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model ({self.d_model}) is not a multiple of n_heads ({self.n_heads})")
        return self

    @property
    def d_head(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.n_heads

    @property
    def d_context(self) -> int:
        """Width of what the decoders see: twice ``d_model`` when labels are concatenated."""
        return self.d_model * (2 if self.n_batch_labels or self.n_modalities else 1)

    @classmethod
    def preset(cls, name: Literal["scgpt", "modern"], *, n_tokens: int, **changes: Any) -> ModelConfig:
        """Return a preset with some fields changed.

        Parameters
        ----------
        name
            ``scgpt`` (512 wide, 12 layers, 8 heads, post-norm, ReLU) or ``modern`` (pre-norm, heads of 128).
        n_tokens
            Vocabulary size.
        **changes
            Fields that differ from the preset.

        Raises
        ------
        ConfigError
            A field is unknown or its value not valid.
        """
        return parse_config(cls, {**PRESETS[name], "n_tokens": n_tokens, **changes}, where=f"model preset {name!r}")
