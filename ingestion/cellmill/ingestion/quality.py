"""Which cells are left out, and why."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cellmill.ingestion.config import QualityConfig


def judge(
    n_genes: npt.NDArray[np.int64], n_counts: npt.NDArray[np.int64], config: QualityConfig
) -> tuple[npt.NDArray[np.bool_], dict[str, int]]:
    """Return which cells are kept, and how many are not, by the first reason that applies.

    Parameters
    ----------
    n_genes, n_counts : int64 [n]
        Expressed genes and UMIs of each cell.
    config
        The limits.
    """
    kept = np.ones(len(n_genes), bool)
    dropped: dict[str, int] = {}
    limits: list[tuple[str, Any]] = [
        ("fewer genes than min_genes", n_genes < config.min_genes),
        ("fewer UMIs than min_counts", n_counts < config.min_counts),
    ]
    if config.max_genes is not None:
        limits.append(("more genes than max_genes", n_genes > config.max_genes))
    if config.max_counts is not None:
        limits.append(("more UMIs than max_counts", n_counts > config.max_counts))
    for reason, failing in limits:
        count = int((kept & failing).sum())
        if count:
            dropped[reason] = count
        kept &= ~failing
    return kept, dropped
