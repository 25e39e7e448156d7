"""Pretraining that goes on from a model: its weights for the genes it knows, new ones for genes that came since."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cellmill.config import parse_config
from cellmill.errors import GeneMappingError
from cellmill.genes import N_SPECIALS, Vocabulary
from cellmill.models import ModelFolder, load_model
from cellmill.training.config import PretrainConfig
from cellmill.training.model import ModelConfig
from cellmill.training.preprocessing import check_values

GENES = "encoder.embedding.weight"
"""The one weight whose shape depends on the vocabulary."""


@dataclass(frozen=True)
class WarmStart:
    """What a pretraining goes on from.

    Attributes
    ----------
    folder
        The model.
    model
        Its shape, with a place for every feature of the atlas.
    rows : int64 [n_tokens]
        The model's token of each token of the atlas, -1 for a feature that it does not know.
    """

    folder: ModelFolder
    model: ModelConfig
    rows: npt.NDArray[np.int64]

    @property
    def n_new(self) -> int:
        """Features that the model does not know."""
        return int((self.rows < 0).sum())


def warm_start(config: PretrainConfig, vocabulary: Vocabulary) -> WarmStart | None:
    """Return what the configuration's `init` leads to, None without one.

    Raises
    ------
    ModelError, IntegrityError
        The model is missing or damaged.
    GeneMappingError
        The model knows none of the atlas's features.
    ConfigError
        The configuration changes what the model's weights fix.
    """
    if config.init is None:
        return None
    folder = load_model(config.init)
    where = str(folder.path)
    before = parse_config(ModelConfig, dict(folder.config), where=where)
    check_values(before, config.tokens)
    rows = np.concatenate([np.arange(N_SPECIALS, dtype=np.int64), folder.vocabulary.lookup(vocabulary.ids)])
    if not (rows[N_SPECIALS:] >= 0).any():
        raise GeneMappingError(
            "The model knows none of the atlas's features.",
            where=where,
            fix="Choose a model of the same organism and modality.",
        )
    return WarmStart(folder, config.model.change(before, n_tokens=vocabulary.size, n_classes=0), rows)


def grown(
    weights: Mapping[str, Tensor], fresh: Mapping[str, Tensor], rows: Mapping[str, npt.NDArray[np.int64]]
) -> dict[str, Tensor]:
    """Return weights whose tables of embeddings have a row for everything that the new model knows.

    Parameters
    ----------
    weights
        The model's.
    fresh
        Tables of the new model, float [n, d] each: rows for what the old one does not know.
    rows : int64 [n] each
        Row of the old table for each of the new one, -1 for none, by the name of the table. A table of which no row
        was there may be wholly new.
    """
    tables = {}
    for name, own in rows.items():
        known = torch.from_numpy(np.flatnonzero(own >= 0))
        tables[name] = fresh[name].clone()
        if known.numel():
            tables[name][known] = weights[name][torch.from_numpy(own)[known]].to(tables[name].dtype)
    return {**weights, **tables}
