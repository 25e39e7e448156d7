"""What is measured: genes, peaks or proteins, and what a list of names looks like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from cellmill.genes.peaks import is_peak
from cellmill.genes.proteins import has_antibody_tag

Modality = Literal["rna", "atac", "protein"]
MODALITIES: tuple[Modality, ...] = get_args(Modality)
"""In the order in which the features of a data set that has several stand."""

_SAMPLE = 1000
_MOST = 0.5


def likely_modality(names: Sequence[str]) -> Modality:
    """Return ``atac`` if most names are genomic regions, ``protein`` if most bear an antibody's tag, else ``rna``."""
    sample = names[:: max(1, len(names) // _SAMPLE)]
    if sum(is_peak(name) for name in sample) > _MOST * len(sample):
        return "atac"
    if sum(has_antibody_tag(name) for name in sample) > _MOST * len(sample):
        return "protein"
    return "rna"
