"""What a fine-tuning starts from: a pretrained model's genes and settings, or those of the atlas."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cellmill.atlas import Selection
from cellmill.config import parse_config
from cellmill.errors import GeneMappingError
from cellmill.genes import N_SPECIALS, Vocabulary
from cellmill.models import ModelFolder, load_model
from cellmill.tokens import TokenConfig
from cellmill.training.conditions import KnownConditions, TrainingConditions, training_conditions
from cellmill.training.config import FinetuneConfig
from cellmill.training.inference import for_inference
from cellmill.training.model import ModelConfig
from cellmill.training.preprocessing import Preprocessing, check_values, panel_ids
from cellmill.training.setup import choose_panel, choose_variable


@dataclass(frozen=True)
class Start:
    """The fixed side of a fine-tuning.

    Attributes
    ----------
    folder
        The pretrained model, or None.
    model
        Shape of the model to train.
    vocabulary
        Its token ids.
    panel
        Atlas tokens that are kept; None means all.
    prefer
        Atlas tokens that are sampled first; None for none.
    token_map
        int64[size of the atlas' vocabulary]: token in the model of each token in the atlas; None where equal.
    preprocessing
        What the model folder will say.
    conditions
        Of the training cells; None for none.
    """

    folder: ModelFolder | None
    model: ModelConfig
    vocabulary: Vocabulary
    panel: npt.NDArray[np.uint32] | None
    prefer: npt.NDArray[np.uint32] | None
    token_map: npt.NDArray[np.int64] | None
    preprocessing: Preprocessing
    conditions: TrainingConditions | None


def start_from(
    config: FinetuneConfig, *, run: Path, selection: Selection, vocabulary: Vocabulary, n_classes: int
) -> Start:
    """Return what the configuration's `init` leads to.

    Parameters
    ----------
    config
        The fine-tuning.
    run
        Its directory, where genes that are chosen are kept.
    selection
        Training cells, for genes of their own.
    vocabulary
        Of the atlas.
    n_classes
        Classes of the training cells.

    Raises
    ------
    ModelError, IntegrityError
        The pretrained model is missing or damaged.
    GeneMappingError
        The atlas has none of the model's genes; see also `training_conditions`.
    ConfigError
        The configuration changes what the pretrained weights fix; see also `training_conditions`.
    """
    skip = config.stream.on_corrupt == "skip"
    own_panel = choose_panel(run, selection, vocabulary, config.panel, skip=skip)
    if config.init is None:
        tokens = config.tokens or TokenConfig()
        conditions = training_conditions(config.conditions, None, selection, vocabulary, own_panel, tokens)
        shape = config.model.resolve(
            n_tokens=vocabulary.size, n_bins=tokens.n_bins, n_classes=n_classes, **_sizes(conditions)
        )
        check_values(shape, tokens)
        prefer = choose_variable(run, selection, vocabulary, config.variable, tokens, skip=skip)
        kept = Preprocessing(
            tokens=tokens, panel=panel_ids(own_panel, vocabulary), variable=panel_ids(prefer, vocabulary)
        )
        return Start(None, shape, vocabulary, own_panel, prefer, None, kept, conditions)
    folder = load_model(config.init)
    where = str(folder.path)
    pretrained = parse_config(ModelConfig, dict(folder.config), where=where)
    before = parse_config(Preprocessing, dict(folder.preprocessing), where=where)
    tokens = config.tokens or for_inference(before.tokens)
    check_values(pretrained, tokens)
    token_map = map_tokens(vocabulary, folder.vocabulary)
    if own_panel is None and before.panel is not None:
        own_panel = _there(before.panel, vocabulary)
    panel = known_panel(token_map, own_panel)
    if len(panel) == 0:
        raise GeneMappingError(
            "The atlas has none of the genes of the pretrained model.",
            where=where,
            fix="Choose a model of the same organism, or a panel of genes that it knows.",
        )
    known = KnownConditions.read(folder.labels, where=where)
    conditions = training_conditions(config.conditions, known, selection, vocabulary, panel, tokens)
    shape = config.model.change(pretrained, n_classes=n_classes, **_sizes(conditions))
    same = bool((token_map[panel] == panel).all())
    if config.variable is None and before.variable is not None and tokens.sampling == "variable_first":
        prefer = _there(before.variable, vocabulary)
    else:
        prefer = choose_variable(run, selection, vocabulary, config.variable, tokens, skip=skip)
    prefer = None if prefer is None else known_panel(token_map, prefer)
    kept = Preprocessing(tokens=tokens, panel=panel_ids(panel, vocabulary), variable=panel_ids(prefer, vocabulary))
    return Start(folder, shape, folder.vocabulary, panel, prefer, None if same else token_map, kept, conditions)


def _sizes(conditions: TrainingConditions | None) -> dict[str, int]:
    """Return what conditions change in the shape of a model."""
    return {} if conditions is None else {"n_conditions": len(conditions.known.names)}


def _there(ids: tuple[str, ...], vocabulary: Vocabulary) -> npt.NDArray[np.uint32]:
    """Return the tokens of those features that the vocabulary has, ascending."""
    tokens = vocabulary.lookup(ids)
    return np.sort(tokens[tokens >= 0]).astype(np.uint32)


def map_tokens(atlas: Vocabulary, model: Vocabulary) -> npt.NDArray[np.int64]:
    """Return the model's token of each token of the atlas, int64[size]; -1 for none, specials are the same."""
    return np.concatenate([np.arange(N_SPECIALS, dtype=np.int64), model.lookup(atlas.ids)])


def known_panel(token_map: npt.NDArray[np.int64], panel: npt.NDArray[np.uint32] | None) -> npt.NDArray[np.uint32]:
    """Return the atlas tokens of a panel (None: of all features) that have a token in the model, ascending."""
    known = np.flatnonzero(token_map >= 0)
    known = known[known >= N_SPECIALS]
    return (known if panel is None else np.intersect1d(known, panel)).astype(np.uint32)
