"""Writing a shard: an AnnData on zarr v3 that anndata reads as it is."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cellmill.atlas.layout import CHUNK, codecs, count_dtype, entries_per_file, index_dtype
from cellmill.atlas.pipeline import fast_codecs
from cellmill.genes import Feature
from cellmill.storage import Storage


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
) -> None:
    """Write counts, genes and barcodes as one zarr group.

    Parameters
    ----------
    storage, path
        Where.
    indptr, indices, data
        CSR over `features`: columns ascending within a row, counts above zero.
    features, tokens : uint32[n_features]
        What the columns are, and their token ids.
    barcodes
        Names of the rows.
    """
    import zarr
    from anndata.io import write_elem

    n_cells, n_features = indptr.size - 1, len(features)
    with fast_codecs(storage.is_local), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="zarr v3 autosharding")
        root = zarr.open_group(storage.zarr_store(path), mode="a", zarr_format=3)
        root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        matrix = root.require_group("X")
        matrix.attrs.update(
            {"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [n_cells, n_features]}
        )
        # A file that is lost reads as the fill value, so each array has one that never occurs in it.
        narrow = index_dtype(n_features)
        _write(matrix, "indptr", indptr.astype(np.int64, copy=False), fill=-1)
        _write(matrix, "indices", indices.astype(narrow, copy=False), fill=int(np.iinfo(narrow).max))
        _write(matrix, "data", data.astype(count_dtype(int(data.max(initial=0))), copy=False), fill=0)
        var = pd.DataFrame(
            {"token": tokens.astype(np.uint32), "symbol": [feature.symbol for feature in features]},
            index=pd.Index([feature.id for feature in features], name="feature_id"),
        )
        write_elem(root, "var", var)
        # Tokens say what counts are counts of, so they carry checksums as counts do.
        _write(root.require_group("var"), "token", tokens.astype(np.uint32), fill=0)
        write_elem(root, "obs", pd.DataFrame(index=pd.Index(barcodes, name="barcode", dtype=str)))


def _write(group: Any, name: str, values: npt.NDArray[Any], fill: int) -> None:
    array = group.create_array(
        name,
        shape=values.shape,
        dtype=values.dtype,
        chunks=(CHUNK,),
        shards=(entries_per_file(values.size),),
        compressors=codecs(values.dtype),
        fill_value=fill,
        overwrite=True,
    )
    array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    array[:] = values


def checksum(storage: Storage, keys: Iterable[str]) -> tuple[str, int]:
    """Return the sha256 over names and sha256 digests of files, and their size in bytes.

    Parameters
    ----------
    storage
        Where the files are.
    keys
        The files, relative to `storage`.
    """

    def digest(key: str) -> tuple[str, int]:
        content = storage.get(key)
        return f"{key} {hashlib.sha256(content).hexdigest()}\n", len(content)

    ordered = sorted(keys)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(digest, ordered))
    state = hashlib.sha256("".join(line for line, _ in found).encode())
    return state.hexdigest(), sum(size for _, size in found)


def shard_keys(storage: Storage, dataset: str, digest: str) -> list[str]:
    """Return the files of a shard: those of the zarr group and the cells' metadata."""
    return [*storage.list(f"shards/{dataset}/{digest}.zarr"), f"cells/{dataset}/{digest}.parquet"]
