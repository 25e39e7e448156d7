"""One row of the catalogue: a shard, what it holds, and where it came from."""

from __future__ import annotations

import pyarrow as pa

from cellmill.config import Config


class ShardEntry(Config):
    """A shard as the catalogue knows it.

    Attributes
    ----------
    dataset, digest
        Name of its data set, and its identity: the digest of input, resolved configuration, recipe and number.
    n_cells, n_features, nnz, max_genes
        Size of its matrix, its non-zeros, and the largest number of genes expressed in one of its cells.
    bytes, checksum
        Size on disk, and the sha256 over the sha256 of each of its files.
    organism, licence
        Of the data set.
    source_url, source_sha256
        The file its cells came from.
    config_digest, recipe
        What made it.
    vocabulary_size
        Size of the vocabulary (with specials) that covers its tokens.
    created
        Time in ISO 8601, UTC.
    """

    dataset: str
    digest: str
    n_cells: int
    n_features: int
    nnz: int
    max_genes: int
    bytes: int
    checksum: str
    organism: str
    licence: str
    source_url: str
    source_sha256: str
    config_digest: str
    recipe: int
    vocabulary_size: int
    created: str

    @property
    def shard_key(self) -> str:
        """Folder of the shard in the atlas."""
        return f"shards/{self.dataset}/{self.digest}.zarr"

    @property
    def cells_key(self) -> str:
        """File of the cells' metadata in the atlas; it is written last, so that it marks a shard as complete."""
        return f"cells/{self.dataset}/{self.digest}.parquet"


CATALOG_SCHEMA = pa.schema(
    [
        pa.field(name, pa.int64() if field.annotation is int else pa.string(), nullable=False)
        for name, field in ShardEntry.model_fields.items()
    ]
)
