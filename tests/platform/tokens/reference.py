"""Tokenisation written from the formulas, one cell and one gene at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def bin_range(values: npt.NDArray[Any], n_bins: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the first and the last bin that each value can fall into.

    scGPT: edges are the quantiles at linspace(0, 1, n_bins - 1); L and R are `digitize` from the left and from the
    right; the bin is ceil(u * (R - L) + L) for u in [0, 1), in other words uniform on R + 1 .. L where L > R.
    """
    edges = np.quantile(values, np.linspace(0, 1, n_bins - 1))
    left = np.digitize(values, edges)
    right = np.digitize(values, edges, right=True)
    return np.where(left > right, right + 1, left), left
