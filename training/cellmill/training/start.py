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
from cellmill.training.config import FinetuneConfig
from cellmill.training.inference import for_inference
from cellmill.training.model import ModelConfig
from cellmill.training.preprocessing import Preprocessing, check_values, panel_ids
from cellmill.training.setup import choose_panel


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
    token_map
        int64[size of the atlas' vocabulary]: token in the model of each token in the atlas; None where equal.
    preprocessing
        What the model folder will say.
    """

    folder: ModelFolder | None
    model: ModelConfig
    vocabulary: Vocabulary
    panel: npt.NDArray[np.uint32] | None
    token_map: npt.NDArray[np.int64] | None
    preprocessing: Preprocessing


def start_from(
    config: FinetuneConfig, *, run: Path, selection: Selection, vocabulary: Vocabulary, n_classes: int
) -> Start:
    """Return what the configuration's `init` leads to.

    Parameters
    ----------
    config
        The fine-tuning.
    run
        Its directory, where a panel is kept.
    selection
        Training cells, for a panel of their own.
    vocabulary
        Of the atlas.
    n_classes
        Classes of the training cells.

    Raises
    ------
    ModelError, IntegrityError
        The pretrained model is missing or damaged.
    GeneMappingError
        The atlas has none of the model's genes.
    ConfigError
        The configuration changes what the pretrained weights fix.
    """
    own_panel = choose_panel(run, selection, vocabulary, config.panel, skip=config.stream.on_corrupt == "skip")
    if config.init is None:
        tokens = config.tokens or TokenConfig()
        shape = config.model.resolve(n_tokens=vocabulary.size, n_bins=tokens.n_bins, n_classes=n_classes)
        check_values(shape, tokens)
        kept = Preprocessing(tokens=tokens, panel=panel_ids(own_panel, vocabulary))
        return Start(None, shape, vocabulary, own_panel, None, kept)
    folder = load_model(config.init)
    where = str(folder.path)
    pretrained = parse_config(ModelConfig, dict(folder.config), where=where)
    before = parse_config(Preprocessing, dict(folder.preprocessing), where=where)
    tokens = config.tokens or for_inference(before.tokens)
    check_values(pretrained, tokens)
    shape = config.model.change(pretrained, n_classes=n_classes)
    token_map = map_tokens(vocabulary, folder.vocabulary)
    if own_panel is None and before.panel is not None:
        wanted = vocabulary.lookup(before.panel)
        own_panel = np.sort(wanted[wanted >= 0]).astype(np.uint32)
    panel = known_panel(token_map, own_panel)
    if len(panel) == 0:
        raise GeneMappingError(
            "The atlas has none of the genes of the pretrained model.",
            where=where,
            fix="Choose a model of the same organism, or a panel of genes that it knows.",
        )
    same = bool((token_map[panel] == panel).all())
    kept = Preprocessing(tokens=tokens, panel=panel_ids(panel, vocabulary))
    return Start(folder, shape, folder.vocabulary, panel, None if same else token_map, kept)


def map_tokens(atlas: Vocabulary, model: Vocabulary) -> npt.NDArray[np.int64]:
    """Return the model's token of each token of the atlas, int64[size]; -1 for none, specials are the same."""
    return np.concatenate([np.arange(N_SPECIALS, dtype=np.int64), model.lookup(atlas.ids)])


def known_panel(token_map: npt.NDArray[np.int64], panel: npt.NDArray[np.uint32] | None) -> npt.NDArray[np.uint32]:
    """Return the atlas tokens of a panel (None: of all features) that have a token in the model, ascending."""
    known = np.flatnonzero(token_map >= 0)
    known = known[known >= N_SPECIALS]
    return (known if panel is None else np.intersect1d(known, panel)).astype(np.uint32)
