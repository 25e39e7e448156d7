"""Writing a shard: an AnnData on zarr v3 that anndata reads as it is."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cellmill.atlas.chunk_writing import ChunkWriter, Digests
from cellmill.atlas.layout import CHUNK, codecs, count_dtype, entries_per_file, index_dtype
from cellmill.digest import digest_of
from cellmill.genes import Feature
from cellmill.storage import Storage


class CountsWriter:
    """Counts, genes and barcodes of a shard as one zarr group; entries are appended in the order of rows.

    Each file is put in place as a whole, over one of the same bytes if an interrupted or a simultaneous run left it:
    nothing is ever deleted or half there, so that a reader of the same shard is not disturbed.

    Parameters
    ----------
    storage, path
        Where; what an interrupted run left there is overwritten.
    n_cells, n_features
        Rows and columns.
    nnz
        Number of entries that will be appended.
    largest
        The largest count among them.
    """

    def __init__(self, storage: Storage, path: str, *, n_cells: int, n_features: int, nnz: int, largest: int) -> None:
        import zarr

        self._storage, self._path = storage, path
        narrow = index_dtype(n_features)
        # A file that is lost reads as the fill value, so each array has one that never occurs in it.
        arrays = {
            "indptr": (n_cells + 1, np.dtype(np.int64), -1),
            "indices": (nnz, narrow, int(np.iinfo(narrow).max)),
            "data": (nnz, count_dtype(largest), 0),
        }
        # What zarr writes is small, and waits here until it is complete.
        self._files: dict[str, Any] = {}
        root = zarr.open_group(zarr.storage.MemoryStore(self._files), mode="w", zarr_format=3)
        root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        matrix = root.require_group("X")
        described: Any = {"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [n_cells, n_features]}
        matrix.attrs.update(described)
        for name, (length, dtype, fill) in arrays.items():
            _declare(matrix, name, length, dtype, fill)
        self._root = root
        self._writers = {name: ChunkWriter(storage, f"{path}/X/{name}", *about) for name, about in arrays.items()}

    def append(self, indices: npt.NDArray[Any], data: npt.NDArray[Any]) -> None:
        """Add entries: columns ascending within a row, counts above zero and at most `largest`."""
        self._writers["indices"].append(indices)
        self._writers["data"].append(data)

    def finish(
        self,
        indptr: npt.NDArray[np.int64],
        features: Sequence[Feature],
        tokens: npt.NDArray[np.uint32],
        barcodes: Sequence[str],
    ) -> Digests:
        """Write what is left, and all that describes the entries.

        Parameters
        ----------
        indptr : int64[n_cells + 1]
            Where rows begin.
        features, tokens : uint32[n_features]
            What the columns are, and their token ids.
        barcodes
            Names of the rows.

        Returns
        -------
        Digests
            Of all files, which need not be read again to be known.
        """
        from anndata.io import write_elem

        self._writers["indptr"].append(indptr)
        digests: Digests = {}
        for writer in self._writers.values():
            writer.close()
            digests |= writer.digests
        var = pd.DataFrame(
            {"token": tokens.astype(np.uint32), "symbol": [feature.symbol for feature in features]},
            index=pd.Index([feature.id for feature in features], name="feature_id"),
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="zarr v3 autosharding")
            write_elem(self._root, "var", var)
            # Tokens say what counts are counts of, so they carry checksums as counts do.
            _declare(self._root.require_group("var"), "token", tokens.size, np.dtype(np.uint32), fill=0)[:] = tokens
            write_elem(self._root, "obs", pd.DataFrame(index=pd.Index(barcodes, name="barcode", dtype=str)))
        for name in sorted(self._files):
            content, key = self._files[name].to_bytes(), f"{self._path}/{name}"
            self._storage.put(key, content)
            digests[key] = digest_of(content), len(content)
        return digests


def write_counts(
    storage: Storage,
    path: str,
    *,
    indptr: npt.NDArray[np.int64],
    indices: npt.NDArray[Any],
    data: npt.NDArray[Any],
    features: Sequence[Feature],
    tokens: npt.NDArray[np.uint32],
    barcodes: Sequence[str],
) -> Digests:
    """Write a shard's group whose entries are all in memory: CSR over `features`; see `CountsWriter`."""
    size = {"n_cells": indptr.size - 1, "n_features": len(features), "nnz": indices.size}
    writer = CountsWriter(storage, path, **size, largest=int(data.max(initial=0)))
    writer.append(indices, data)
    return writer.finish(indptr, features, tokens, barcodes)


def _declare(group: Any, name: str, length: int, dtype: np.dtype[Any], fill: int) -> Any:
    array = group.create_array(
        name,
        shape=(length,),
        dtype=dtype,
        chunks=(CHUNK,),
        shards=(entries_per_file(length),),
        compressors=codecs(dtype),
        fill_value=fill,
        overwrite=True,
    )
    array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    return array


def checksum(storage: Storage, keys: Iterable[str], known: Digests | None = None) -> tuple[str, int]:
    """Return the digest over names and digests of files, and their size in bytes.

    Parameters
    ----------
    storage
        Where the files are.
    keys
        The files, relative to `storage`.
    known
        Digests of files that need not be read.
    """
    wanted = sorted(keys)
    known = known or {}
    found = {**known, **read_digests(storage, [key for key in wanted if key not in known])}
    lines = "".join(f"{key} {found[key][0]}\n" for key in wanted)
    return digest_of(lines.encode()), sum(found[key][1] for key in wanted)


def read_digests(storage: Storage, keys: Sequence[str]) -> Digests:
    """Read files, several at a time, and return their digests."""

    def digest(key: str) -> tuple[str, int]:
        content = storage.get(key)
        return digest_of(content), len(content)

    if not keys:
        return {}
    with ThreadPoolExecutor(4) as pool:
        return dict(zip(keys, pool.map(digest, keys), strict=True))


def shard_keys(storage: Storage, dataset: str, digest: str, layout: str = "zarr") -> list[str]:
    """Return the files of a shard: those of the zarr group, or the Arrow file, and the cells' metadata."""
    path = f"shards/{dataset}/{digest}.{layout}"
    return [*(storage.list(path) if layout == "zarr" else [path]), f"cells/{dataset}/{digest}.parquet"]
