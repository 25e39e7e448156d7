"""Cells of an atlas as an ordinary AnnData."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from cellmill.atlas.atlas import Atlas
from cellmill.atlas.shard import open_shard
from cellmill.atlas.snapshot import Snapshot
from cellmill.genes import N_SPECIALS, Vocabulary


def read(url: str, *, version: int | None = None, where: str | None = None) -> ad.AnnData:
    """Read cells of an atlas into memory.

    Parameters
    ----------
    url
        The atlas.
    version
        A snapshot; the newest by default.
    where
        A predicate over cell metadata, such as ``tissue == 'lung'``.

    Returns
    -------
    AnnData
        ``X`` is CSR with int32 indices and float32 raw counts (the narrow integers on disk would overflow in sums);
        ``var`` is the union of the data sets' features by id; ``obs`` is the cells' metadata.

    Raises
    ------
    AtlasError, ConfigError, IntegrityError
        No such atlas or snapshot; a bad predicate; a damaged shard.
    """
    atlas = Atlas.open(url)
    return read_snapshot(atlas.snapshot(version), atlas.vocabulary(), where)


def read_snapshot(snapshot: Snapshot, vocabulary: Vocabulary, where: str | None = None) -> ad.AnnData:
    """Read cells of a snapshot; see `read`."""
    selection = snapshot.select(where)
    shards = [open_shard(snapshot.storage, entry) for entry in selection.shards]
    tokens = np.unique(np.concatenate([np.zeros(0, np.uint32), *(shard.tokens for shard in shards)]))
    blocks = []
    for at, shard in enumerate(shards):
        rows = selection.rows(at)
        columns, counts, indptr = shard.gather(np.zeros(1, np.int64), np.array([len(shard.indptr) - 1]))
        place = np.searchsorted(tokens, shard.tokens).astype(np.int32)
        block = sparse.csr_matrix(
            (counts.astype(np.float32), place[columns], indptr), shape=(len(indptr) - 1, len(tokens))
        )
        block.sort_indices()
        blocks.append(block if rows is None else block[rows])
    matrix = sparse.vstack(blocks, format="csr") if blocks else sparse.csr_matrix((0, 0), dtype=np.float32)
    features = [vocabulary.features[token - N_SPECIALS] for token in tokens]
    var = pd.DataFrame(
        {"symbol": [f.symbol for f in features], "token": tokens, "modality": [f.modality for f in features]},
        index=pd.Index([f.id for f in features], name="feature_id"),
    )
    obs = snapshot.cells(where=where).to_pandas(strings_to_categorical=True)
    obs["content_hash"] = [value.hex() for value in obs["content_hash"]]
    obs.index = pd.Index(obs.pop("barcode").astype(str), name="barcode")
    return ad.AnnData(matrix, obs=obs, var=var)
