"""The model section of a run's configuration: a preset, and what differs from it."""

from __future__ import annotations

from typing import Any, Literal

from cellmill.config import Config, parse_config
from cellmill.errors import ConfigError
from cellmill.training.model import ModelConfig
from cellmill.training.model.config import PRESETS

CHANGEABLE = ("dropout", "n_layers_cls", "attention")
"""What may differ from the model that a fine-tuning starts from, because no pretrained weight depends on it."""


class ArchitectureConfig(Config):
    """Shape of a new model; a field that is left out comes from the preset, or else from `ModelConfig`.

    The numbers of tokens, classes and labels follow from the data and are not set here.
    """

    preset: Literal["scgpt", "modern"] | None = None
    d_model: int | None = None
    n_layers: int | None = None
    n_heads: int | None = None
    d_ff: int | None = None
    dropout: float | None = None
    norm: Literal["post", "pre"] | None = None
    activation: Literal["relu", "gelu"] | None = None
    gen_out_proj: Literal["shared", "identity"] | None = None
    value_encoder: Literal["continuous", "category"] | None = None
    n_layers_cls: int | None = None
    mvc: bool | None = None
    attention: Literal["auto", "flash", "sdpa"] | None = None

    def resolve(self, **derived: Any) -> ModelConfig:
        """Return the full model configuration.

        Parameters
        ----------
        **derived
            What follows from the data: ``n_tokens``, ``n_bins``, ``n_classes``.

        Raises
        ------
        ConfigError
            The fields do not fit together.
        """
        chosen = {**(PRESETS[self.preset] if self.preset else {}), **self._given()}
        return parse_config(ModelConfig, {**chosen, **derived}, where="model")

    def change(self, model: ModelConfig, **derived: Any) -> ModelConfig:
        """Return the configuration of a pretrained model with the changes that its weights allow.

        Raises
        ------
        ConfigError
            A field is set that the pretrained weights fix.
        """
        given = self._given()
        fixed = sorted({*given, *(["preset"] if self.preset else [])} - {*CHANGEABLE})
        if fixed:
            raise ConfigError(
                f"model.{fixed[0]} is fixed by the pretrained model.",
                where="model",
                fix=f"Leave it out (free: {', '.join(CHANGEABLE)}), or set `init: null` to start from scratch.",
            )
        return parse_config(ModelConfig, {**model.model_dump(), **given, **derived}, where="model")

    def _given(self) -> dict[str, Any]:
        return {key: value for key, value in self.model_dump(exclude={"preset"}).items() if value is not None}
