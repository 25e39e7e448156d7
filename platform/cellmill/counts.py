"""The counts guard: a matrix either holds raw counts, or it is refused with the likely cause."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cellmill.errors import CountsError

TOLERANCE = 1e-6
"""Largest distance from an integer that still counts as rounding noise, as a share of the integer where that is above 1
(1e-11 is what pipelines in double precision leave, 1e-7 of the value those in single)."""

_LARGEST_LOG = 30.0  # log1p of 1e13: no logarithm of a count is larger


def check_counts(data: npt.NDArray[Any], where: str) -> npt.NDArray[np.uint32]:
    """Return the values as unsigned integers, or refuse them.

    Parameters
    ----------
    data
        Values of a count matrix, any shape and any numeric dtype (the ``data`` array of a sparse matrix, or a
        dense block). Zeros are allowed.
    where
        The file and the place in it, for the message.

    Returns
    -------
    uint32[same shape]
        The counts. Noise within `TOLERANCE` is rounded away.

    Raises
    ------
    CountsError
        A value is NaN or infinite, negative, not close to an integer, above 2**32 - 1, or larger than its dtype holds
        exactly.
    """
    if data.dtype.kind in "OSU":
        raise CountsError(f"The matrix holds {data.dtype}, not numbers.", where=where, fix="Store counts as integers.")
    if data.size == 0:
        return data.astype(np.uint32)
    if data.dtype.kind == "b":
        return data.astype(np.uint32)
    if data.dtype.kind == "f":
        return _from_floats(data, where)
    low, high = int(data.min()), int(data.max())
    if low < 0:
        raise CountsError(_negative(low), where=where, fix=_FIX)
    _check_range(high, where)
    return data.astype(np.uint32, copy=False)


_FIX = "Point to the raw counts (often `raw.X` or `layers['counts']`), as integers before any normalisation."


def _from_floats(data: npt.NDArray[Any], where: str) -> npt.NDArray[np.uint32]:
    low, high = float(data.min()), float(data.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        bad = int(np.count_nonzero(~np.isfinite(data)))
        raise CountsError(f"{bad} values are NaN or infinite.", where=where, fix="Remove or repair those cells.")
    if low < -TOLERANCE:
        raise CountsError(_negative(low), where=where, fix=_FIX)
    _check_range(high, where)
    refuse_inexact(high, data.dtype, where)
    rounded = np.rint(data)
    off = np.abs(data - rounded) > TOLERANCE * np.maximum(rounded, 1)
    if off.any():
        n, share = int(off.sum()), float(off.mean())
        which = f"{share:.1%} of the" if share >= 0.001 else f"{n:,} of {off.size:,}"
        example = float(data[off].flat[0])
        cause = "normalised or corrected (ambient, imputed)"
        if high < _LARGEST_LOG:
            cause = "log-transformed (log1p)" if high > 1 else "normalised to shares of a cell"
        raise CountsError(
            f"These are not raw counts: {which} values are not integers (such as {example:.4g}; "
            f"largest {high:.4g}). They look {cause}.",
            where=where,
            fix=_FIX,
        )
    counts: npt.NDArray[np.uint32] = rounded.astype(np.uint32)
    return counts


def refuse_inexact(high: float, dtype: np.dtype[Any], where: str) -> None:
    """Refuse floats so large that not every integer below them could have been stored.

    Parameters
    ----------
    high
        The largest value.
    dtype
        As it was stored.
    where
        The file and the place in it, for the message.

    Raises
    ------
    CountsError
        It is above 2**11, 2**24 or 2**53 in half, single or double precision.
    """
    exact = 2 ** (np.finfo(dtype).nmant + 1)
    if high > exact:
        raise CountsError(
            f"The largest value is {high:.8g}, and {dtype} holds only counts up to {exact:,} exactly.",
            where=where,
            fix="Point to the raw counts, stored as integers, or as float32 or float64.",
        )


def _negative(low: float) -> str:
    return f"These are not raw counts: the smallest value is {low:.4g}. They look scaled (zero mean, unit variance)."


def _check_range(high: float, where: str) -> None:
    if high > np.iinfo(np.uint32).max:
        raise CountsError(f"The largest count is {high:.4g}, which no UMI count reaches.", where=where, fix=_FIX)
