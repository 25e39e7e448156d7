"""A snapshot, or a part of it, as an ordinary AnnData."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from scipy import sparse

from cellmill.atlas.atlas import Atlas
from cellmill.atlas.measured import read_measured
from cellmill.atlas.selection import Selection
from cellmill.atlas.shard import Shard, open_shard
from cellmill.atlas.snapshot import Snapshot
from cellmill.atlas.sound import sound_part
from cellmill.atlas.vocabulary_check import check_vocabulary
from cellmill.errors import ConfigError
from cellmill.genes import N_SPECIALS, Vocabulary

if TYPE_CHECKING:
    from anndata import AnnData


def read(url: str | Path, version: int | str | None = None, where: str | None = None) -> AnnData:
    """Read cells into memory.

    Parameters
    ----------
    url
        Path or URL of the atlas.
    version
        Number or tag of a snapshot; the newest by default.
    where
        A predicate over the cells' metadata, see `cellmill.atlas.predicate`.

    Returns
    -------
    AnnData
        ``X`` holds the counts as CSR (float32 with int32 indices, or float64 where a count is above 2**24). ``var``
        holds the features of the data sets that were read, by their ids, with symbol, token id, modality and
        organism. ``obs`` holds the metadata by barcode, or by data set and barcode, or by cell id, whichever is unique.

    Raises
    ------
    AtlasError
        There is no such atlas or snapshot.
    ConfigError
        The predicate is not valid, or selects no cell.
    IntegrityError
        The vocabulary, or a shard, is not as it was written.
    """
    atlas = Atlas.open(url)
    return read_snapshot(atlas.snapshot(version), atlas.vocabulary(), where)


def read_snapshot(
    snapshot: Snapshot, vocabulary: Vocabulary, where: str | None = None, skipped: dict[str, int] | None = None
) -> AnnData:
    """Read cells of an open snapshot into memory; see `read`.

    If `skipped` is given, shards that are missing or damaged (``dataset/digest``) are left out, and noted there with
    the number of their selected cells.
    """
    from anndata import AnnData

    selection = snapshot.select(where)

    if not selection.n_cells:
        raise ConfigError(
            "No cell fulfils the predicate." if selection.where else "The snapshot has no cells.",
            where=selection.where or snapshot.atlas.url,
        )
    if skipped is not None:
        selection = sound_part(selection, skipped)
    check_vocabulary(vocabulary, selection.shards, snapshot.atlas.storage.join("vocabulary"))
    shards = [open_shard(snapshot.atlas.storage, entry) for entry in selection.shards]
    measured = [tokens for i, shard in enumerate(shards) for tokens in _measured(selection, i, shard)]
    tokens = np.unique(np.concatenate(measured))
    blocks = []
    for i, shard in enumerate(shards):
        first, last = _runs(selection.rows(i), shard.n_rows)
        columns, counts, indptr = shard.gather(first, last)
        # Columns that none of the cells has measured have no entries, and no place.
        place = np.minimum(np.searchsorted(tokens, shard.tokens), tokens.size - 1).astype(np.int32)
        exact = np.float32 if int(counts.max(initial=0)) <= 1 << 24 else np.float64
        shape = (indptr.size - 1, tokens.size)
        blocks.append(sparse.csr_matrix((counts.astype(exact), place[columns], indptr), shape=shape))
    matrix = sparse.csr_matrix(sparse.vstack(blocks, format="csr"))
    matrix.sort_indices()
    features = [vocabulary.features[token - N_SPECIALS] for token in tokens.tolist()]
    var = pd.DataFrame(
        {
            "symbol": [feature.symbol for feature in features],
            "token": tokens,
            "modality": pd.Categorical([feature.modality for feature in features]),
            "organism": pd.Categorical([feature.organism for feature in features]),
        },
        index=pd.Index([feature.id for feature in features], name="feature_id"),
    )
    found = AnnData(X=matrix, obs=_obs(selection), var=var)
    found.uns["cellmill_atlas"] = {"snapshot": snapshot.name, "where": selection.where or ""}
    return found


def _measured(selection: Selection, i: int, shard: Shard) -> tuple[npt.NDArray[np.uint32], ...]:
    """Return the sets of tokens that selected cells of the i-th shard have measured."""
    found = read_measured(selection.snapshot.atlas.storage, shard.entry, shard.tokens)
    rows = selection.rows(i)
    if found.of_row is None:
        return found.sets
    return tuple(found.sets[number] for number in np.unique(found.of_row if rows is None else found.of_row[rows]))


def _runs(rows: Any, n_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return rows as runs of neighbours: first of each, and one after its last."""
    if rows is None:
        return np.array([0]), np.array([n_rows])
    rows = rows.astype(np.int64)
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    return rows[np.concatenate([[0], breaks])], rows[np.concatenate([breaks - 1, [rows.size - 1]])] + 1


def _obs(selection: Selection) -> pd.DataFrame:
    table = selection.cells()
    hashes = [value.hex() for value in table.column("content_hash").to_pylist()]
    table = table.drop_columns(["content_hash", "shard", "row"])
    for index, item in enumerate(table.schema):
        if pa.types.is_string(item.type) and item.name != "barcode":
            table = table.set_column(index, item.name, table.column(index).dictionary_encode())
        elif pa.types.is_null(item.type):
            table = table.set_column(index, item.name, table.column(index).cast(pa.float64()))
    obs: pd.DataFrame = table.to_pandas()
    for item in table.schema:
        if pa.types.is_boolean(item.type) and table.column(item.name).null_count:
            obs[item.name] = obs[item.name].astype("boolean")  # h5ad has no other truth value that may be missing
    obs["content_hash"] = hashes
    names = obs["barcode"].astype(str)
    if not names.is_unique:
        names = obs["dataset"].astype(str) + ":" + names
    if not names.is_unique:
        names = obs["cell_id"].map("{:016x}".format)
    obs.index = pd.Index(names.to_numpy(), dtype=str)
    obs["barcode"] = obs.pop("barcode").to_numpy()
    return obs
