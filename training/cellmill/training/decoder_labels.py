"""What decoders see beside the model's outputs: the batch that a cell is of, and the modality of a token.

The transformer sees neither, so that cell embeddings and classes need no batch: a cell of a batch that training never
saw is embedded like any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cellmill.atlas import Selection
from cellmill.errors import ConfigError
from cellmill.genes import Vocabulary
from cellmill.stream import class_counts
from cellmill.tokens import Modalities
from cellmill.training.config import PretrainConfig

BATCH = "batch"
"""Name under which the batches of cells are streamed."""
_TABLES = {"batches": "batch_encoder.embedding.weight", "modalities": "mod_encoder.embedding.weight"}


@dataclass(frozen=True)
class DecoderLabels:
    """Labels of a model's decoders.

    Attributes
    ----------
    column
        Column of the cells that tells their batch; None where decoders see no batch.
    batches
        Its classes, in the order of their ids.
    modalities
        Names of modalities, in the order of their ids; empty where decoders see none.
    """

    column: str | None = None
    batches: tuple[str, ...] = ()
    modalities: tuple[str, ...] = ()

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> DecoderLabels:
        """Return the labels that a model folder's ``labels.json`` tells of."""
        names = (tuple(document.get(key, ())) for key in _TABLES)
        return cls(document.get("batch_label"), *names)

    def document(self) -> dict[str, Any]:
        """Return what ``labels.json`` is to tell."""
        batches = {"batch_label": self.column, "batches": list(self.batches)} if self.batches else {}
        return {**batches, **({"modalities": list(self.modalities)} if self.modalities else {})}

    def sizes(self) -> dict[str, int]:
        """Return the fields of the model's configuration."""
        return {"n_batch_labels": len(self.batches), "n_modalities": len(self.modalities)}

    def rows(self, before: DecoderLabels) -> dict[str, npt.NDArray[np.int64]]:
        """Return the row of an earlier model's table for each label, -1 for a new one, by the table's name."""
        found = {}
        for key, table in _TABLES.items():
            place = {name: row for row, name in enumerate(getattr(before, key))}
            if names := getattr(self, key):
                found[table] = np.array([place.get(name, -1) for name in names], np.int64)
        return found

    def of_token(self, vocabulary: Vocabulary) -> npt.NDArray[np.int64] | None:
        """Return the modality of each token, int64 [tokens]; None where decoders see none."""
        if not self.modalities:
            return None
        found = Modalities.of(vocabulary)
        codes = np.array([self.modalities.index(name) for name in found.names], np.int64)
        return codes[found.of_token]


def decoder_labels(
    config: PretrainConfig, selection: Selection, vocabulary: Vocabulary, before: DecoderLabels | None
) -> DecoderLabels:
    """Return the labels that a pretraining's decoders see.

    Parameters
    ----------
    config
        The pretraining.
    selection
        Its cells.
    vocabulary
        Of the atlas.
    before
        Labels of the model that it goes on from; they keep their ids, and new ones follow.

    Raises
    ------
    ConfigError
        The batch label is no column, or some cells have none; or the model that it goes on from has labels, and this
        pretraining has not, or the other way round.
    """
    old = before or DecoderLabels()
    batches = () if config.batch_label is None else _joined(old.batches, _batches(selection, config.batch_label))
    modalities = _joined(old.modalities, Modalities.of(vocabulary).names) if config.modalities else ()
    if before is not None:
        for key, now, then in (
            ("batch_label", batches, old.batches),
            ("modalities", modalities, old.modalities),
        ):
            if bool(now) != bool(then):
                raise ConfigError(
                    f"The decoders of the pretrained model see {'' if then else 'no '}{key.replace('_', ' ')}, and its "
                    "weights fix that.",
                    where=key,
                    fix=f"Set `{key}` as in the run of that model, or set `init: null` to start from scratch.",
                )
    return DecoderLabels(config.batch_label, batches, modalities)


def _batches(selection: Selection, column: str) -> list[str]:
    counts = class_counts(selection, column)
    without = selection.n_cells - sum(counts.values())
    if without:
        raise ConfigError(
            f"{without:,} of {selection.n_cells:,} cells have no batch: {column!r} is missing.",
            where="batch_label",
            fix=f"Leave them out with `where: {column} is not null`, or name another column.",
        )
    return sorted(counts)


def _joined(old: tuple[str, ...], names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*old, *names)))
