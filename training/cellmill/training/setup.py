"""What every training run does before it trains: pin the snapshot, open the run, choose the genes."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from cellmill.atlas import Atlas, Selection
from cellmill.config import load_config
from cellmill.errors import ConfigError
from cellmill.genes import N_SPECIALS, Vocabulary
from cellmill.tokens import TokenConfig, highly_variable
from cellmill.training.config import PanelConfig, TrainingConfig

C = TypeVar("C", bound=TrainingConfig)

_CHOICES = ("panel", "variable")
_LOG = logging.getLogger("cellmill.training")


def pin_snapshot(config: C, *, resume: bool) -> C:
    """Return the configuration with its snapshot's number, the run's own on resuming.

    Raises
    ------
    AtlasError
        There is no such atlas or snapshot.
    """
    if isinstance(config.snapshot, int):
        return config
    written = config.output / "config.yaml"
    if resume and written.exists():
        # A tag may stand for another snapshot by now.
        return config.model_copy(update={"snapshot": load_config(type(config), written).snapshot})
    return config.model_copy(update={"snapshot": Atlas.open(config.atlas).snapshot(config.snapshot).version})


def select(atlas: Atlas, snapshot: int | str | None, where: str | None, *, key: str) -> Selection:
    """Return the cells that a predicate keeps.

    Raises
    ------
    ConfigError
        The predicate is not valid or keeps no cell; `key` is where it stands in the configuration.
    """
    selection = atlas.snapshot(snapshot).select(where)
    if selection.n_cells == 0:
        raise ConfigError(
            "No cell is selected.", where=f"{key}: {where}", fix="See `cellmill atlas query` for what there is."
        )
    return selection


def choose_panel(
    run: Path, selection: Selection, vocabulary: Vocabulary, config: PanelConfig | None, *, skip: bool = False
) -> npt.NDArray[np.uint32] | None:
    """Return the tokens of the genes that the model sees, computed once a run and kept with it; None for all.

    With `skip`, shards that are missing or damaged have no say, and are told of in the log with the number of their
    cells, which `panel_skipped` returns.

    Raises
    ------
    ConfigError
        The batch key is not a column, or no feature is of the modality.
    """
    return None if config is None else _choose(run, "panel", selection, vocabulary, config, skip)


def choose_variable(
    run: Path,
    selection: Selection,
    vocabulary: Vocabulary,
    config: PanelConfig | None,
    tokens: TokenConfig,
    *,
    skip: bool = False,
) -> npt.NDArray[np.uint32] | None:
    """Return the tokens of the genes that are sampled first, computed as `choose_panel` does; None for none.

    Raises
    ------
    ConfigError
        See `choose_panel`; or variable genes are configured, but not sampled first.
    """
    if tokens.sampling == "variable_first":
        return _choose(run, "variable", selection, vocabulary, config or PanelConfig(), skip)
    if config is not None:
        raise ConfigError(
            f"Variable genes would be chosen in vain: tokens are sampled {tokens.sampling!r}.",
            where="variable",
            fix="Set tokens.sampling to variable_first, or leave `variable` out.",
        )
    return None


def _choose(
    run: Path, what: str, selection: Selection, vocabulary: Vocabulary, config: PanelConfig, skip: bool
) -> npt.NDArray[np.uint32]:
    path = run / f"{what}.json"
    if path.exists():
        ids = json.loads(path.read_text())
        return np.sort(vocabulary.lookup(ids)).astype(np.uint32)
    skipped: dict[str, int] | None = {} if skip else None
    tokens = highly_variable(selection, skipped=skipped, **config.model_dump())
    chosen = np.sort(tokens).astype(np.uint32)
    if skipped:
        _LOG.warning("%s.json is made without cells of damaged shards (stream.on_corrupt: skip): %s.", what, skipped)
        (run / f"{what}_skipped.json").write_text(json.dumps(skipped))
    path.write_text(json.dumps([vocabulary.ids[int(token) - N_SPECIALS] for token in chosen]))
    return chosen


def panel_skipped(run: Path) -> dict[str, int]:
    """Return the cells that had no say in the choice of a run's genes, by damaged shard."""
    paths = (run / f"{what}_skipped.json" for what in _CHOICES)
    found: dict[str, int] = {}
    for path in paths:
        found |= json.loads(path.read_text()) if path.exists() else {}
    return found
