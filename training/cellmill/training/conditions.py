"""Conditions of cells by a configuration: which column tells them, their codes, and what a model knows of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import Field

from cellmill.atlas import Selection
from cellmill.config import Config, parse_config
from cellmill.errors import ConfigError, GeneMappingError
from cellmill.genes import N_SPECIALS, Vocabulary
from cellmill.stream import as_text, class_counts
from cellmill.tokens import Conditions, TokenConfig

CONDITION = "condition"
"""Name under which the conditions of cells are streamed."""
TABLE = "condition_encoder.weight"
PERTURBED = "perturbed"
"""The one condition of genes that a perturbation acts on."""


class ConditionsConfig(Config):
    """Where the conditions of tokens come from.

    Attributes
    ----------
    by
        Column of the cells.
    marks
        ``cells``: each value of the column is a condition, which all tokens of its cells have; ``genes``: a value
        names genes by id or symbol, such as ``KLF1+BAK1``, and the tokens of these are marked as perturbed.
    none
        Values, or among genes parts of values, that are no condition, such as ``control``. A cell without a value has
        none either.
    separator
        What stands between the genes of a value.
    """

    by: str
    marks: Literal["cells", "genes"] = "cells"
    none: tuple[str, ...] = ()
    separator: str = Field("+", min_length=1)

    def genes(self, value: str) -> list[str]:
        """Return the genes that a value names."""
        parts = [part.strip() for part in value.split(self.separator)]
        return [] if value in self.none else [part for part in parts if part not in self.none]

    def is_none(self, value: str) -> bool:
        """Return whether a value is no condition."""
        return value in self.none or (self.marks == "genes" and not self.genes(value))


@dataclass(frozen=True)
class KnownConditions:
    """What a model knows of conditions, as ``labels.json`` of its folder tells it.

    Attributes
    ----------
    rule
        Where conditions come from.
    names
        Of the conditions, in the order of their codes, which begin at 1; 0 is none.
    marked
        Ids of the genes that were perturbed in training; these are sampled before all others.
    unconditioned
        Whether cells without a condition were among those of the training.
    """

    rule: ConditionsConfig
    names: tuple[str, ...]
    marked: tuple[str, ...] = ()
    unconditioned: bool = True

    @classmethod
    def read(cls, document: Mapping[str, Any], where: str) -> KnownConditions | None:
        """Return what ``labels.json`` tells of; None where the model knows no conditions."""
        if "conditions" not in document:
            return None
        rule = parse_config(ConditionsConfig, dict(document["condition_rule"]), where=where)
        names, marked = tuple(document["conditions"]), tuple(document.get("marked_genes", ()))
        return cls(rule, names, marked, bool(document["unconditioned"]))

    def document(self) -> dict[str, Any]:
        """Return what ``labels.json`` is to tell."""
        found: dict[str, Any] = {
            "conditions": list(self.names),
            "condition_rule": self.rule.model_dump(mode="json"),
            "unconditioned": self.unconditioned,
        }
        return {**found, **({"marked_genes": list(self.marked)} if self.marked else {})}

    def channel(
        self, values: Sequence[str], vocabulary: Vocabulary, panel: npt.NDArray[np.uint32] | None, *, where: str
    ) -> Conditions:
        """Return the conditions of cells whose class is their value's place in `values`.

        Parameters
        ----------
        values
            Values of the column, as text.
        vocabulary, panel
            Tokens of genes, and those that the model sees (None: all).
        where
            Where the values stand, for messages.

        Raises
        ------
        ConfigError
            A value is no condition that the model knows.
        GeneMappingError
            A value names a gene that the model does not see.
        """
        rule = self.rule
        if rule.marks == "genes":
            tokens = _tokens([rule.genes(value) for value in values], vocabulary, panel, where)
            return Conditions.of(CONDITION, [0] * len(values), [[(token, 1) for token in own] for own in tokens])
        place = {name: 1 + i for i, name in enumerate(self.names)} | dict.fromkeys(rule.none, 0)
        if unknown := [value for value in values if value not in place]:
            raise ConfigError(
                f"{len(unknown)} conditions of {rule.by!r} are none that the model knows, such as {unknown[0]!r}.",
                where=where,
                fix=f"It knows {', '.join(self.names[:20])}. Leave these cells out, or train with such cells.",
            )
        return Conditions.of(CONDITION, [place[value] for value in values])

    def of_query(
        self, obs: pd.DataFrame, vocabulary: Vocabulary, panel: npt.NDArray[np.uint32] | None
    ) -> tuple[Conditions, npt.NDArray[np.int32], int] | None:
        """Return conditions, the class of each cell, int32 [n], and how many have one; None if the column is absent.

        Raises
        ------
        ConfigError, GeneMappingError
            See `channel`; or cells have no condition, and the model has never seen such cells.
        """
        where, codes, values = f"AnnData: obs[{self.rule.by!r}]", np.full(len(obs), -1, np.int32), list[str]()
        if self.rule.by in obs:
            known = obs[self.rule.by].notna().to_numpy()
            texts = as_text(obs[self.rule.by][known].tolist())
            values = sorted(set(texts))
            codes[known] = np.searchsorted(values, texts)
        without = np.isin(codes, [-1, *(i for i, value in enumerate(values) if self.rule.is_none(value))])
        if without.any() and not self.unconditioned:
            raise ConfigError(
                f"{int(without.sum()):,} of {len(obs):,} cells have no condition; all that the model learnt from had.",
                where=where,
                fix="Give the column with a condition for each cell.",
            )
        if self.rule.by not in obs:
            return None
        return self.channel(values, vocabulary, panel, where=where), codes, int((~without).sum())


@dataclass(frozen=True)
class TrainingConditions:
    """Conditions of the cells of a training.

    Attributes
    ----------
    known
        What the model will know.
    classes
        Values of the column, in the order of their codes in the stream.
    channel
        Conditions by class, in tokens of the atlas.
    n_without
        Cells without a condition.
    rows : int64 [conditions + 1]
        Row of an earlier model's table for each condition, -1 for a new one.
    """

    known: KnownConditions
    classes: tuple[str, ...]
    channel: Conditions
    n_without: int
    rows: npt.NDArray[np.int64] = field(repr=False)


def training_conditions(
    given: ConditionsConfig | Literal["none"] | None,
    before: KnownConditions | None,
    selection: Selection,
    vocabulary: Vocabulary,
    panel: npt.NDArray[np.uint32] | None,
    tokens: TokenConfig,
) -> TrainingConditions | None:
    """Return the conditions of a training's cells, None for none.

    Parameters
    ----------
    given
        What the configuration says; None takes what the model has.
    before
        What the model that the training goes on from knows. Its conditions keep their codes, and new ones follow.
    selection
        The cells.
    vocabulary, panel
        Of the atlas, and those tokens that the model sees (None: all).
    tokens
        How cells become tokens.

    Raises
    ------
    ConfigError
        The column does not exist, or has no condition; a value that is to be none occurs nowhere; the model was
        trained to other ends; or perturbed genes without counts would be no tokens.
    GeneMappingError
        A value names a gene that the model does not see.
    """
    rule = before.rule if given is None and before is not None else given
    if rule is None or rule == "none":
        return None
    if before is not None and before.rule.marks != rule.marks:
        raise ConfigError(
            f"Conditions of the pretrained model mark {before.rule.marks}, not {rule.marks}.",
            where="conditions.marks",
            fix=f"Set it to {before.rule.marks}, or start from another model.",
        )
    if rule.marks == "genes" and tokens.include_zero == "none":
        raise ConfigError(
            "A perturbed gene without counts would be no token, and its condition would be lost.",
            where="tokens.include_zero",
            fix="Set it to panel or all, or set conditions.marks to cells.",
        )
    counts = class_counts(selection, rule.by)
    if given is not None:
        _check_none(rule, counts)
    classes = tuple(sorted(value for value in counts if not rule.is_none(value)))
    if not classes and before is None:
        raise ConfigError(f"No cell has a condition in {rule.by!r}.", where="conditions.by", fix="Name another column.")
    n_without = selection.n_cells - sum(counts[value] for value in classes)
    old = () if before is None else before.names
    names = tuple(dict.fromkeys((*old, *((PERTURBED,) if rule.marks == "genes" else classes))))
    bare = KnownConditions(rule, names, (), n_without > 0 or (before is not None and before.unconditioned))
    channel = bare.channel(classes, vocabulary, panel, where=f"column {rule.by!r}")
    marked = tuple(vocabulary.ids[int(token) - N_SPECIALS] for token in np.unique(channel.token))
    place = {name: 1 + row for row, name in enumerate(old)}
    rows = np.array([0 if old else -1, *(place.get(name, -1) for name in names)], np.int64)
    return TrainingConditions(replace(bare, marked=marked), classes, channel, n_without, rows)


def _check_none(rule: ConditionsConfig, counts: Mapping[str, int]) -> None:
    """Refuse a value that is to be no condition and that no cell has."""
    parts = {part.strip() for value in counts for part in value.split(rule.separator)} if rule.marks == "genes" else ()
    if absent := [name for name in rule.none if name not in counts and name not in parts]:
        raise ConfigError(
            f"No cell has {absent[0]!r} in {rule.by!r}.",
            where="conditions.none",
            fix=f"There are {', '.join(sorted(counts)[:20])}.",
        )


def _tokens(
    genes: Sequence[Sequence[str]], vocabulary: Vocabulary, panel: npt.NDArray[np.uint32] | None, where: str
) -> list[list[int]]:
    """Return the tokens of genes that are named by id or by symbol."""
    by_symbol: dict[str, list[int]] = {}
    for token, feature in enumerate(vocabulary.features, N_SPECIALS):
        by_symbol.setdefault(feature.symbol, []).append(token)
    seen = None if panel is None else set(panel.tolist())

    def find(name: str) -> int:
        ids = vocabulary.lookup([name])
        found = ids[ids >= 0].tolist() or by_symbol.get(name, [])
        if len(found) != 1 or (seen is not None and found[0] not in seen):
            what = "stands for several features" if len(found) > 1 else "is none of the genes that the model sees"
            raise GeneMappingError(
                f"The perturbed gene {name!r} {what}.",
                where=where,
                fix="Name genes by id or symbol, put values that name none into `conditions.none`, or leave these "
                "cells out.",
            )
        return int(found[0])

    known = {name: find(name) for name in dict.fromkeys(name for own in genes for name in own)}
    return [[known[name] for name in own] for own in genes]
