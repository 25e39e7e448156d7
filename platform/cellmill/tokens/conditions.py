"""Conditions of tokens: what was done to a cell, or what holds for it, as the third channel beside gene and value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cellmill.atlas.jit import compiled
from cellmill.errors import ConfigError

U16 = npt.NDArray[np.uint16]
U32 = npt.NDArray[np.uint32]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Conditions:
    """Which conditions the tokens of a cell have, by the class of the cell; see `Conditions.of`.

    Attributes
    ----------
    label
        Name of the label that tells the class.
    cell : uint16 [classes]
        Condition of all tokens of a cell, ``<cls>`` too; 0 for none.
    start : int64 [classes + 1]
        Where the tokens of each class begin that have a condition of their own.
    token : uint32 [k]
        These tokens.
    own : uint16 [k]
        Their conditions, which take the place of the cell's.
    """

    label: str
    cell: U16
    start: I64
    token: U32
    own: U16

    @classmethod
    def of(
        cls, label: str, cell: Sequence[int], tokens: Sequence[Sequence[tuple[int, int]]] | None = None
    ) -> Conditions:
        """Make conditions.

        Parameters
        ----------
        label
            Name of the label that tells the class of a cell.
        cell
            Condition of all tokens of a cell, by class; 0 for none.
        tokens
            Tokens with a condition of their own and these conditions, by class; such as the genes that a perturbation
            acts on, with 1 for "perturbed".

        Raises
        ------
        ConfigError
            A condition is not in 0 to 65,535, or there are not as many lists of tokens as classes.
        """
        pairs = [[]] * len(cell) if tokens is None else tokens
        flat = [pair for own in pairs for pair in own]
        if len(pairs) != len(cell):
            raise ConfigError(
                f"{len(pairs)} lists of tokens for {len(cell)} classes.", where=f"conditions of {label!r}"
            )
        if any(not 0 <= number < 1 << 16 for number in [*cell, *(number for _, number in flat)]):
            raise ConfigError("A condition is not in 0 to 65,535.", where=f"conditions of {label!r}")
        return cls(
            label=label,
            cell=np.array(cell, np.uint16),
            start=np.concatenate([[0], np.cumsum([len(own) for own in pairs], dtype=np.int64)]).astype(np.int64),
            token=np.array([token for token, _ in flat], np.uint32),
            own=np.array([number for _, number in flat], np.uint16),
        )

    def of_tokens(self, gene: npt.NDArray[Any], cu_seqlens: I32, classes: I32) -> U16:
        """Return the condition of each token of packed cells: uint16 [tokens].

        Parameters
        ----------
        gene : [tokens]
            Tokens of the cells, one cell after the other.
        cu_seqlens : int32 [cells + 1]
            Where cells begin.
        classes : int32 [cells]
            Class of each; -1 for none, whose tokens have no condition.

        Raises
        ------
        ConfigError
            A cell is of a class that has no conditions.
        """
        if classes.size and int(classes.max()) >= self.cell.size:
            raise ConfigError(
                f"Class {int(classes.max())} of {self.label!r} is beyond the {self.cell.size} that have conditions.",
                where="conditions",
                fix="Give conditions for each class of the label.",
            )
        found = np.empty(gene.size, np.uint16)
        _mark(gene, cu_seqlens, classes, self.cell, self.start, self.token, self.own, found)
        return found


@compiled
def _mark(gene: Any, cu_seqlens: Any, classes: Any, cell: Any, start: Any, token: Any, own: Any, out: Any) -> None:
    for i in range(classes.size):
        begin, end, c = cu_seqlens[i], cu_seqlens[i + 1], classes[i]
        out[begin:end] = cell[c] if c >= 0 else 0
        if c < 0:
            continue
        for k in range(start[c], start[c + 1]):
            for j in range(begin, end):
                if gene[j] == token[k]:
                    out[j] = own[k]
