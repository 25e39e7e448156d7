"""One row of the catalog: a shard, what is in it, and where it came from."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

from cellmill.atlas.part import Part, decode_parts
from cellmill.config import Config

COMPACTED = "_compacted"
"""Where shards are whose cells are of several data sets; no data set can have this name."""


class ShardEntry(Config):
    """A shard as a snapshot sees it.

    Attributes
    ----------
    dataset, digest
        Name of the shard: ``shards/<dataset>/<digest>``. The digest is that of its input, the resolved
        configuration, the recipe's version and the shard's number.
    n_cells
        Cells of this shard that the snapshot holds.
    n_rows
        Rows of the shard. Rows beyond `n_cells` are hidden by the overlay.
    n_features, nnz, max_features
        Columns; stored counts; the largest number of features, of all modalities, in a cell.
    bytes, checksum
        Size of all files of the shard, and the BLAKE3 over their names and BLAKE3 digests.
    organism
        Of the cells.
    source_url, source_digest, licence
        The file that the cells came from, the BLAKE3 of its bytes (of a source of several files, of what these are
        called and are known by), and its terms.
    files
        Digests of all files where several are joined, with blanks between; empty for one.
    config_digest, recipe
        Identity of the resolved configuration, and version of the way shards are made.
    vocabulary_size, vocabulary_digest
        The vocabulary when the shard was written: its tokens are below this size.
    overlay
        Digest of the list of rows that the snapshot hides or marks; empty for none.
    hash_run
        Digest of the run of content hashes that includes this shard's cells; empty for none.
    columns, statistics
        Types of the metadata's columns, and bounds of their values; empty if they are not told.
    created
        UTC, ISO 8601.
    origin
        Digest of the shard that this one was rewritten from when cells were withdrawn; empty for none.
    withdrawals
        Numbers of the withdrawals that took cells of it, with commas between; empty for none.
    layout
        How its counts lie: ``zarr``, a group that anndata reads; ``arrow``, a file of an export; ``anndata``,
        a store that was linked, of which the atlas has but the description.
    parts
        Of a compacted shard: what it has of each source, see `sources`. Its own `dataset` is `COMPACTED`, its
        `source_digest` is the digest of the shards that it was made of, and organism and licence are empty unless all
        parts have the same.
    """

    dataset: str
    digest: str
    n_cells: int
    n_rows: int
    n_features: int
    nnz: int
    max_features: int
    bytes: int
    checksum: str
    organism: str
    source_url: str
    source_digest: str
    licence: str
    config_digest: str
    recipe: int
    vocabulary_size: int
    vocabulary_digest: str
    overlay: str = ""
    hash_run: str = ""
    columns: str = ""
    statistics: str = ""
    created: str = ""
    origin: str = ""
    withdrawals: str = ""
    layout: str = "zarr"
    parts: str = ""
    files: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """Data set and digest: the order of shards in a snapshot."""
        return self.dataset, self.digest

    @property
    def planned(self) -> tuple[str, str]:
        """Data set, and digest as an ingestion plans it: that of the shard before cells were withdrawn."""
        return self.dataset, self.origin or self.digest

    @property
    def sources(self) -> tuple[Part, ...]:
        """The sources that its cells came from, and how many came from each."""
        if self.parts:
            return decode_parts(self.parts)
        own = {name: getattr(self, name) for name in Part.model_fields if name != "types"}
        return (Part.model_construct(**own, types={}),)

    @property
    def datasets(self) -> tuple[str, ...]:
        """Names of the data sets that its cells are of."""
        return tuple(dict.fromkeys(part.dataset for part in self.sources))

    @property
    def shard_path(self) -> str:
        """Where the counts are, relative to the atlas."""
        return f"shards/{self.dataset}/{self.digest}.{self.layout}"

    @property
    def cells_path(self) -> str:
        """Where the cells' metadata is, relative to the atlas."""
        return f"cells/{self.dataset}/{self.digest}.parquet"

    @property
    def overlay_path(self) -> str:
        """Where the hidden and marked rows are listed, relative to the atlas."""
        return f"overlays/{self.dataset}/{self.overlay}.parquet"

    @property
    def hash_run_path(self) -> str:
        """Where the content hashes are, relative to the atlas."""
        return f"hashes/{self.hash_run}"


SCHEMA = pa.schema(
    [(name, pa.int64() if field.annotation is int else pa.string()) for name, field in ShardEntry.model_fields.items()]
)
"""Columns of the catalog."""


def to_table(entries: Iterable[ShardEntry]) -> pa.Table:
    """Return catalog rows as a table."""
    return pa.Table.from_pylist([entry.model_dump() for entry in entries], schema=SCHEMA)


def from_table(table: pa.Table) -> list[ShardEntry]:
    """Return the rows of a catalog table.

    Values were validated when they were written, so they are not validated again: a catalog may have many rows.
    """
    return [ShardEntry.model_construct(**row) for row in table.to_pylist()]
