"""A snapshot: one version of the catalogue, and everything that can be asked of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cellmill.atlas.cells import read_cells
from cellmill.atlas.entry import ShardEntry
from cellmill.atlas.predicate import parse_where
from cellmill.atlas.selection import Selection
from cellmill.lineage import Lineage
from cellmill.storage import Storage


@dataclass(frozen=True)
class Snapshot:
    """A version of an atlas; it never changes.

    Attributes
    ----------
    storage
        Storage of the atlas.
    atlas_id
        Identity of the atlas.
    version
        Number of the snapshot.
    shards
        Its shards, by data set and digest.
    """

    storage: Storage
    atlas_id: str
    version: int
    shards: tuple[ShardEntry, ...]

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return sum(entry.n_cells for entry in self.shards)

    @cached_property
    def _schema(self) -> pa.Schema:
        one_per_dataset = {entry.dataset: entry for entry in self.shards}
        schemas = [
            pq.read_schema(pa.BufferReader(self.storage.get(entry.cells_key))).remove_metadata()
            for entry in one_per_dataset.values()
        ]
        return pa.unify_schemas(schemas, promote_options="permissive") if schemas else pa.schema([])

    def columns(self) -> tuple[str, ...]:
        """Return the names of the cells' columns."""
        return tuple(self._schema.names)

    def select(self, where: str | None = None) -> Selection:
        """Choose cells by a predicate.

        Raises
        ------
        ConfigError
            The predicate is not valid or names a column that no data set has.
        """
        if where is None:
            counts = np.array([entry.n_cells for entry in self.shards], np.int64)
            return Selection(self, None, self.shards, counts, (None,) * len(self.shards))
        expression = parse_where(where, self.columns())
        kept, rows = [], []
        for entry in self.shards:
            table = self._with_all_columns(read_cells(self.storage, entry))
            found = table.append_column("_at", pa.array(np.arange(entry.n_cells, dtype=np.uint32)))
            chosen = found.filter(expression)["_at"].to_numpy()
            if len(chosen):
                kept.append(entry)
                rows.append(None if len(chosen) == entry.n_cells else chosen)
        counts = np.array([e.n_cells if r is None else len(r) for e, r in zip(kept, rows, strict=True)], dtype=np.int64)
        return Selection(self, where, tuple(kept), counts, tuple(rows))

    def cells(self, columns: Sequence[str] | None = None, where: str | None = None) -> pa.Table:
        """Return the metadata of the cells that a predicate keeps, by shard and row."""
        selection = self.select(where)
        names = list(columns) if columns is not None else list(self.columns())
        schema = pa.schema([self._schema.field(name) for name in names if name in self._schema.names])
        tables = [
            self._with_all_columns(selection.table(shard, names), schema) for shard in range(len(selection.shards))
        ]
        return pa.concat_tables(tables) if tables else schema.empty_table()

    def lineage(self, selection: Selection | None = None) -> Lineage:
        """Return where the snapshot's cells, or the selected ones, came from."""
        shards = self.shards if selection is None else selection.shards
        by_dataset: dict[str, list[ShardEntry]] = {}
        for entry in shards:
            by_dataset.setdefault(entry.dataset, []).append(entry)
        return Lineage(
            kind="snapshot",
            name=f"snapshot {self.version}",
            digest=f"{self.atlas_id}@{self.version}",
            location=self.storage.url,
            facts={
                "cells": self.n_cells if selection is None else selection.n_cells,
                "where": selection.where if selection is not None else None,
            },
            parents=tuple(_dataset(name, entries) for name, entries in by_dataset.items()),
        )

    def _with_all_columns(self, table: pa.Table, schema: pa.Schema | None = None) -> pa.Table:
        schema = schema or self._schema
        columns = [
            table[field.name].cast(field.type)
            if field.name in table.column_names
            else pa.nulls(table.num_rows, field.type)
            for field in schema
        ]
        return pa.table(columns, schema=schema)


def _dataset(name: str, entries: list[ShardEntry]) -> Lineage:
    sources = {(entry.source_url, entry.source_sha256) for entry in entries}
    return Lineage(
        kind="dataset",
        name=name,
        digest=entries[0].config_digest,
        facts={"cells": sum(entry.n_cells for entry in entries), "shards": len(entries), "licence": entries[0].licence},
        parents=tuple(
            Lineage(
                kind="source",
                name=url.rpartition("/")[2],
                digest=digest,
                location=url,
                facts={"licence": entries[0].licence},
            )
            for url, digest in sorted(sources)
        ),
    )
