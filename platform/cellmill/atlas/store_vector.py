"""Arrays of one dimension in anybody's zarr store, of formats 2 and 3, with any codec: read by ranges."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Container, Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from cellmill.errors import SourceError
from cellmill.storage import Storage

I64 = npt.NDArray[np.int64]
_FAST = "zarrs.ZarrsCodecPipeline"


class StoreVector:
    """An array, opened.

    Parameters
    ----------
    array
        The zarr array.
    where
        For messages.
    """

    def __init__(self, array: Any, where: str) -> None:
        self._array, self._where = array, where
        self._chunk = int(array.chunks[0])

    def read(self, low: int, high: int) -> npt.NDArray[Any]:
        """Return entries ``[low, high)`` in this machine's byte order; fewer where the array ends before.

        Raises
        ------
        SourceError
            They cannot be read or decoded.
        """
        try:
            found = np.asarray(self._array[low:high])
        except SourceError:
            raise
        except Exception as error:
            raise _unreadable(self._where, error) from error
        return found.astype(found.dtype.newbyteorder("="), copy=False)

    def pieces(self, begin: I64, end: I64) -> npt.NDArray[Any]:
        """Return pieces that are ascending and apart, one after the other; no chunk is decoded twice."""
        wanted = end > begin
        begin, end = begin[wanted], end[wanted]
        if not begin.size:
            return self.read(0, 0)
        apart = np.flatnonzero(begin[1:] // self._chunk > (end[:-1] - 1) // self._chunk) + 1
        bounds = [0, *apart.tolist(), begin.size]
        parts = []
        for first, last in pairwise(bounds):
            low, high = int(begin[first]), int(end[last - 1])
            found = self.read(low, high)
            if high - low == int((end[first:last] - begin[first:last]).sum()):
                parts.append(found)
                continue
            # Neighbouring cells are one slice.
            gaps = np.flatnonzero(begin[first + 1 : last] != end[first : last - 1]) + first + 1
            starts, stops = begin[[first, *gaps]] - low, end[[*(gaps - 1), last - 1]] - low
            parts += [found[start:stop] for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def open_vectors(store: Storage, group: str, names: Sequence[str], keys: Container[str]) -> list[StoreVector]:
    """Open arrays of a group.

    Local files are decoded by `zarrs` where it is installed; what is remote is fetched in ranges.

    Parameters
    ----------
    store
        The folder.
    group, names
        The arrays.
    keys
        All files of the group.

    Raises
    ------
    SourceError
        One is not there, or cannot be opened.
    """
    import zarr

    from cellmill.atlas.zarr_bridge import StorageStore

    fast = store.is_local and importlib.util.find_spec("zarrs") is not None
    beneath = store.zarr_store("", read_only=True) if store.is_local else StorageStore(store, keys)
    found = []
    for name in names:
        where = store.join(f"{group}/{name}")
        try:
            with zarr.config.set({"codec_pipeline.path": _FAST}) if fast else nullcontext(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                array = zarr.open_array(beneath, path=f"{group}/{name}", mode="r")
        except SourceError:
            raise
        except Exception as error:
            raise _unreadable(where, error) from error
        if array.ndim != 1:
            raise SourceError(f"{group}/{name} has {array.ndim} dimensions, not one.", where=where)
        found.append(StoreVector(array, where))
    return found


def _unreadable(where: str, error: Exception) -> SourceError:
    text = str(error).partition("\n")[0] or type(error).__name__
    return SourceError(f"{where.rpartition('/')[2]} cannot be read: {text}.", where=where)
