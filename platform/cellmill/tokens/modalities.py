"""Which modality each token belongs to, and how its values are made."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cellmill.genes import N_SPECIALS, Vocabulary

BINARY = ("atac",)
"""Modalities whose features are there or not: they keep one fixed value and are never binned."""


@dataclass(frozen=True)
class Modalities:
    """The modalities of a vocabulary; values are binned, or normalised, per cell and modality.

    Attributes
    ----------
    names
        Of the modalities.
    of_token : uint8 [tokens]
        Modality of each token, as a position in `names`; 0 for special tokens.
    """

    names: tuple[str, ...]
    of_token: npt.NDArray[np.uint8]

    @classmethod
    def of(cls, vocabulary: Vocabulary) -> Modalities:
        """Return the modalities of a vocabulary, in order of first appearance."""
        names = tuple(dict.fromkeys(feature.modality for feature in vocabulary.features)) or ("rna",)
        place = {name: i for i, name in enumerate(names)}
        codes = np.zeros(vocabulary.size, np.uint8)
        codes[N_SPECIALS:] = [place[feature.modality] for feature in vocabulary.features]
        return cls(names, codes)

    @property
    def binary(self) -> npt.NDArray[np.bool_]:
        """Whether each modality is binary, bool [modalities]."""
        return np.array([name in BINARY for name in self.names])
