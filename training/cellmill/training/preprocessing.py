"""What stands between counts and a model, as its folder keeps it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cellmill.config import Config
from cellmill.errors import ConfigError, ModelError
from cellmill.genes import N_SPECIALS, Vocabulary
from cellmill.tokens import TokenConfig
from cellmill.training.model import ModelConfig


class Preprocessing(Config):
    """The content of ``preprocessing.json``.

    Attributes
    ----------
    tokens
        How a cell becomes tokens.
    panel
        Ids of the genes that the model looks at; None means all of its vocabulary.
    variable
        Ids of the genes that are sampled first; None for none.
    """

    tokens: TokenConfig
    panel: tuple[str, ...] | None = None
    variable: tuple[str, ...] | None = None

    def panel_tokens(self, vocabulary: Vocabulary) -> npt.NDArray[np.uint32] | None:
        """Return the tokens of the panel, ascending.

        Raises
        ------
        ModelError
            A gene of the panel is not in the vocabulary.
        """
        return _tokens("panel", self.panel, vocabulary)

    def variable_tokens(self, vocabulary: Vocabulary) -> npt.NDArray[np.uint32] | None:
        """Return the tokens of the genes that are sampled first, ascending.

        Raises
        ------
        ModelError
            One is not in the vocabulary.
        """
        return _tokens("variable genes", self.variable, vocabulary)


def _tokens(what: str, ids: tuple[str, ...] | None, vocabulary: Vocabulary) -> npt.NDArray[np.uint32] | None:
    if ids is None:
        return None
    tokens = vocabulary.lookup(ids)
    if (tokens < 0).any():
        missing = [name for name, token in zip(ids, tokens, strict=True) if token < 0]
        raise ModelError(
            f"{len(missing)} genes of the {what} are not in the vocabulary, such as {missing[0]}.",
            where="preprocessing.json",
            fix="The files of the model folder do not belong together; write it again.",
        )
    return np.sort(tokens).astype(np.uint32)


def check_values(model: ModelConfig, tokens: TokenConfig) -> None:
    """Refuse values that a model has no place for.

    Raises
    ------
    ConfigError
        Tokens have another number of bins than the model, or real numbers where the model looks up bins.
    """
    if model.n_bins != tokens.n_bins:
        raise ConfigError(
            f"The model was trained with {model.n_bins} bins, not {tokens.n_bins}.",
            where="tokens.n_bins",
            fix=f"Set tokens.n_bins to {model.n_bins}.",
        )
    if model.value_encoder == "category" and tokens.value == "log1p":
        raise ConfigError(
            "The model looks values up as categories, and log1p values are none.",
            where="tokens.value",
            fix="Set tokens.value to bins or midrank, or model.value_encoder to continuous.",
        )


def kept_tokens(
    tokens: TokenConfig, vocabulary: Vocabulary, panel: npt.NDArray[np.uint32] | None
) -> npt.NDArray[np.uint32] | None:
    """Return the tokens of the genes that `TokenConfig.keep` names; None for none.

    Raises
    ------
    ConfigError
        One is not in the vocabulary, or not in the panel.
    """
    if not tokens.keep:
        return None
    found = vocabulary.lookup(tokens.keep)
    lost = (found < 0) | (np.zeros(found.size, bool) if panel is None else ~np.isin(found, panel))
    if lost.any():
        missing = [name for name, none in zip(tokens.keep, lost, strict=True) if none]
        raise ConfigError(
            f"{len(missing)} genes that are to be kept are not among those that the model sees, such as {missing[0]}.",
            where="tokens.keep",
            fix="Name genes by the ids of the vocabulary (Ensembl ids), and only those of the panel if there is one.",
        )
    return found.astype(np.uint32)


def first_tokens(
    tokens: TokenConfig,
    vocabulary: Vocabulary,
    panel: npt.NDArray[np.uint32] | None,
    marked: npt.NDArray[np.uint32] | None,
) -> npt.NDArray[np.uint32] | None:
    """Return the tokens that a cell keeps whatever else it has: those of `kept_tokens`, and those with a condition.

    Raises
    ------
    ConfigError
        See `kept_tokens`.
    """
    kept = kept_tokens(tokens, vocabulary, panel)
    found = [part for part in (kept, marked) if part is not None and part.size]
    return np.unique(np.concatenate(found)) if found else None


def panel_ids(panel: npt.NDArray[np.uint32] | None, vocabulary: Vocabulary) -> tuple[str, ...] | None:
    """Return the feature ids of tokens."""
    return None if panel is None else tuple(vocabulary.ids[int(token) - N_SPECIALS] for token in panel)
