"""Shards: a block of cells as AnnData-on-zarr v3, written once, checked, and read by runs of rows."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import zarr
from anndata.io import write_elem
from scipy import sparse
from zarr.codecs import BloscCodec, Crc32cCodec

from cellmill.atlas.entry import ShardEntry
from cellmill.errors import IntegrityError
from cellmill.storage import Storage

CHUNK_ENTRIES = 1 << 17
"""Entries in a chunk, the unit of decompression: the best of 2^16 to 2^20 for runs of 512 cells and more."""
ZARR_SHARD_ENTRIES = 1 << 23
"""Entries in a zarr shard, the unit of storage."""
_PIPELINE = "zarrs.ZarrsCodecPipeline"

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Shard:
    """An open shard.

    Attributes
    ----------
    key
        Where it is, for messages.
    tokens : uint32 [n_features]
        Token id of each column.
    indptr : int64 [n_cells + 1]
        Row pointers.
    columns, counts
        The zarr arrays ``X/indices`` and ``X/data``.
    """

    key: str
    tokens: npt.NDArray[np.uint32]
    indptr: npt.NDArray[np.int64]
    columns: Any
    counts: Any

    def gather(
        self, starts: npt.NDArray[np.int64], stops: npt.NDArray[np.int64]
    ) -> tuple[Array, Array, npt.NDArray[np.int64]]:
        """Read runs of rows ``[start, stop)``, one after the other.

        Parameters
        ----------
        starts, stops : int64 [n_runs]

        Returns
        -------
        columns : uint16 or uint32 [nnz]
            Column of each entry.
        counts : uint8, uint16 or uint32 [nnz]
        indptr : int64 [rows + 1]

        Raises
        ------
        IntegrityError
            A chunk is missing or does not have its checksum.
        """
        lengths = [np.diff(self.indptr[a : b + 1]) for a, b in zip(starts, stops, strict=True)]
        indptr = np.zeros(sum(map(len, lengths)) + 1, np.int64)
        np.cumsum(np.concatenate([np.zeros(0, np.int64), *lengths]), out=indptr[1:])
        columns = np.empty(indptr[-1], self.columns.dtype)
        counts = np.empty(indptr[-1], self.counts.dtype)
        at = 0
        try:
            for a, b in zip(starts, stops, strict=True):
                low, high = int(self.indptr[a]), int(self.indptr[b])
                if high > low:
                    columns[at : at + high - low] = self.columns[low:high]
                    counts[at : at + high - low] = self.counts[low:high]
                at += high - low
        except (ValueError, RuntimeError, OSError, KeyError) as error:
            raise _unreadable(self.key, error) from error
        return columns, counts, indptr


def open_shard(storage: Storage, entry: ShardEntry) -> Shard:
    """Open a shard; local files are decoded by the zarrs pipeline, remote ones by zarr's own.

    Raises
    ------
    IntegrityError
        The shard is missing, incomplete or of another size than the catalogue says.
    """
    key = storage.join(entry.shard_key)
    pipeline = zarr.config.set({"codec_pipeline.path": _PIPELINE}) if storage.is_local else contextlib.nullcontext()
    try:
        with pipeline:
            group: Any = zarr.open_group(storage.zarr_store(entry.shard_key, read_only=True), mode="r")
            matrix: Any = group["X"]
            shard = Shard(
                key=key,
                tokens=np.asarray(group["var/token"][:], np.uint32),
                indptr=np.asarray(matrix["indptr"][:], np.int64),
                columns=matrix["indices"],
                counts=matrix["data"],
            )
    except (ValueError, RuntimeError, OSError, KeyError) as error:
        raise _unreadable(key, error) from error
    if (len(shard.indptr) - 1, len(shard.tokens), shard.indptr[-1]) != (entry.n_cells, entry.n_features, entry.nnz):
        raise IntegrityError("The shard is not of the size that the catalogue says.", where=key, fix=_FIX)
    return shard


def write_shard(
    storage: Storage,
    key: str,
    matrix: sparse.csr_matrix,
    *,
    barcodes: Sequence[str],
    features: pd.DataFrame,
) -> None:
    """Write a shard that `anndata.read_zarr` opens.

    Parameters
    ----------
    storage, key
        Where the shard goes; what an earlier, interrupted run left there is replaced.
    matrix : csr [n_cells, n_features]
        Raw counts.
    barcodes
        Names of the cells.
    features
        ``var``: indexed by feature id, with the columns ``token`` and ``symbol``.
    """
    storage.delete_tree(key)
    group = zarr.open_group(storage.zarr_store(key), mode="w", zarr_format=3)
    group.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    csr = group.create_group("X")
    csr.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": list(matrix.shape)})
    _write(csr, "data", _narrow(matrix.data))
    _write(csr, "indices", matrix.indices.astype(np.uint16 if matrix.shape[1] <= 1 << 16 else np.uint32))
    _write(csr, "indptr", matrix.indptr.astype(np.int64))
    write_elem(group, "obs", pd.DataFrame(index=pd.Index(barcodes, name="barcode")))
    write_elem(group, "var", features)
    for name in ("layers", "obsm", "varm", "obsp", "varp", "uns"):
        write_elem(group, name, {})


def fingerprint(storage: Storage, key: str) -> tuple[int, str]:
    """Return the size of a shard in bytes, and the sha256 over the sha256 of each of its files, by name."""
    total, whole = 0, hashlib.sha256()
    for name in storage.list(key):
        data = storage.get(name)
        total += len(data)
        whole.update(f"{name.removeprefix(key)} {hashlib.sha256(data).hexdigest()}\n".encode())
    return total, whole.hexdigest()


def _write(group: zarr.Group, name: str, values: Array) -> None:
    chunk = min(CHUNK_ENTRIES, max(1, len(values)))
    shard = min(ZARR_SHARD_ENTRIES, -(-max(1, len(values)) // chunk) * chunk)
    array = group.create_array(
        name,
        shape=values.shape,
        dtype=values.dtype,
        chunks=(chunk,),
        shards=(shard,),
        compressors=[BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle"), Crc32cCodec()],
    )
    array[:] = values


def _narrow(values: Array) -> Array:
    largest = int(values.max(initial=0))
    return values.astype(np.uint8 if largest < 1 << 8 else np.uint16 if largest < 1 << 16 else np.uint32)


_FIX = "See `cellmill atlas verify`; restore the file, or ingest its source again."


def _unreadable(key: str, error: Exception) -> IntegrityError:
    text = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return IntegrityError(f"The shard cannot be read: {text}", where=key, fix=_FIX)
