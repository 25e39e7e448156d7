"""What a cell is judged by, and which cells are left out, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cellmill.genes import Feature
from cellmill.ingestion.config import QualityConfig

I64 = npt.NDArray[np.int64]
OTHER, RNA, MITOCHONDRIAL = 0, 1, 2
_MITOCHONDRIAL_PREFIX = "MT-"
"""Of all genes on chrM, and of no other, in GENCODE human (``MT-``) and mouse (``mt-``)."""


@dataclass(frozen=True)
class Measures:
    """What is known of each cell from its counts: arrays of n.

    Parameters
    ----------
    n_genes, n_counts : int64
        Expressed genes, and the sum of their counts; of all features where no gene was measured.
    n_features : int64
        Expressed features of all modalities.
    mito_share : float32
        Share of the genes' counts in mitochondrial genes; NaN where none was measured, or the cell has no counts.
    """

    n_genes: I64
    n_counts: I64
    n_features: I64
    mito_share: npt.NDArray[np.float32]

    @classmethod
    def of(cls, sums: I64, kinds: npt.NDArray[np.int32]) -> Measures:
        """Return the measures of cells.

        Parameters
        ----------
        sums : int64 [5, n]
            Expressed features, their counts, expressed genes, their counts, counts of mitochondrial genes.
        kinds : int32 [n_features]
            See `feature_kinds`.
        """
        n_features, every, n_genes, n_counts, mito = sums
        share = np.full(n_genes.size, np.nan, np.float32)
        if measures_mitochondria(kinds):
            np.divide(mito, n_counts, out=share, where=n_counts > 0, casting="unsafe")
        if not (kinds != OTHER).any():
            n_genes, n_counts = n_features, every
        return cls(n_genes, n_counts, n_features, share)


def feature_kinds(features: Sequence[Feature]) -> npt.NDArray[np.int32]:
    """Return of each feature whether it is a gene, and a mitochondrial one: int32 [n_features]."""
    kinds = [
        OTHER
        if feature.modality != "rna"
        else MITOCHONDRIAL
        if feature.symbol.upper().startswith(_MITOCHONDRIAL_PREFIX)
        else RNA
        for feature in features
    ]
    # As wide as what is fetched from several places at once.
    return np.array(kinds, np.int32)


def measures_mitochondria(kinds: npt.NDArray[np.int32]) -> bool:
    """Return whether there are mitochondrial genes among the features."""
    return bool((kinds == MITOCHONDRIAL).any())


def judge(
    measures: Measures, config: QualityConfig, wanted: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.bool_], dict[str, int]]:
    """Return which cells are kept, and how many are not, by the first reason that applies.

    A cell of unknown mitochondrial share passes that limit.

    Parameters
    ----------
    measures
        What is known of the cells.
    config
        The limits.
    wanted : bool [n]
        Cells that fulfil the source's predicate.
    """
    kept = np.ones(len(measures.n_genes), bool)
    dropped: dict[str, int] = {}
    limits: list[tuple[str, Any]] = [
        ("outside of `where`", ~wanted),
        ("fewer genes than min_genes", measures.n_genes < config.min_genes),
        ("fewer UMIs than min_counts", measures.n_counts < config.min_counts),
    ]
    if config.max_genes is not None:
        limits.append(("more genes than max_genes", measures.n_genes > config.max_genes))
    if config.max_counts is not None:
        limits.append(("more UMIs than max_counts", measures.n_counts > config.max_counts))
    if config.max_mito_share is not None:
        limits.append(("more mitochondrial UMIs than max_mito_share", measures.mito_share > config.max_mito_share))
    for reason, failing in limits:
        count = int((kept & failing).sum())
        if count:
            dropped[reason] = count
        kept &= ~failing
    return kept, dropped
