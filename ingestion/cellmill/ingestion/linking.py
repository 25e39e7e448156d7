"""AnnData zarr stores as data sets of an atlas, whose counts are checked once and stay where they are."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from cellmill.atlas import Atlas, ShardEntry
from cellmill.atlas.cells import write_cells
from cellmill.atlas.files import list_files
from cellmill.atlas.lease import Lease
from cellmill.atlas.link import ARRAYS, Link
from cellmill.atlas.presence import Presence
from cellmill.atlas.store_vector import StoreVector, open_vectors
from cellmill.atlas.summary import summarise
from cellmill.atlas.writing import checksum, shard_keys
from cellmill.console import progress
from cellmill.errors import SourceError
from cellmill.genes import Vocabulary
from cellmill.ingestion import pipeline, shards
from cellmill.ingestion.backend import LocalBackend
from cellmill.ingestion.chunk import process_chunk
from cellmill.ingestion.commit import commit, purge_replaced, refuse_renamed
from cellmill.ingestion.config import IngestConfig, QualityConfig
from cellmill.ingestion.opening import close_source, open_source
from cellmill.ingestion.plan import SourcePlan
from cellmill.ingestion.result import IngestResult, write_run
from cellmill.ingestion.sources.anndata_group import AnnDataGroupSource
from cellmill.ingestion.tally import Tally
from cellmill.ingestion.tasks import receipt_of
from cellmill.ingestion.withdrawn_columns import check_columns
from cellmill.storage import Storage


def link(config: IngestConfig) -> IngestResult:
    """Add AnnData zarr stores to an atlas in one commit; their counts stay where they are.

    Genes are harmonised, counts checked, cells judged and duplicates found as an ingestion does it, so that each cell
    has the id, the metadata and the tokens that an ingestion gives it. A store is read twice for that: for its digest,
    and for its counts. Rows keep their order in the store, so that the stream mixes what the store has mixed: runs
    shorter than the default (``stream.run``) mix better and read more bytes than they use.

    A store that is linked must stay where it is, and as it is: whoever reads compares the sizes of its files and the
    content hash of every cell. Linking it again after a change replaces its former self.

    Parameters
    ----------
    config
        As of an ingestion; all sources are folders of AnnData in zarr, of format 2 or 3, local or in an object store.

    Raises
    ------
    SourceError
        A source is no such folder, or its counts do not lie by rows.
    CountsError, GeneMappingError, ConfigError, ConflictError
        As an ingestion does.
    """
    planned = [_as_link(plan) for plan in pipeline.plan(config, LocalBackend())]
    pipeline.refuse_twins(planned)
    atlas = Atlas.open_or_create(config.atlas, sorted({plan.mapping.organism for plan in planned}))
    names = [key for plan in planned for digest in plan.shard_digests for key in _keys(plan.dataset, digest)]
    with Lease(atlas.storage, "write", names) as lease:
        newest = atlas.snapshot()
        refuse_renamed(planned, newest.shards)
        withdrawals = atlas.withdrawals(newest.version)
        active = {one.number for one in withdrawals}
        present = Presence(newest.shards, active)
        plans = [plan for plan in planned if not pipeline.is_present(atlas, plan, present, active)]
        check_columns(atlas.storage, plans, withdrawals, ())
        # The ids come first: no shard may hold a token that another ingestion could give to another feature.
        atlas.vocabulary()  # refuses one that lost features, whose ids would be given again
        features = dict.fromkeys(feature for plan in plans for feature in plan.mapping.features)
        vocabulary = atlas.vocabulary_store.allocate(features) if plans else atlas.vocabulary()
        entries, tallies = [], []
        with progress(sum(plan.n_cells for plan in plans), "linking") as advance:
            for plan in plans:
                tally = Tally(plan)
                tallies.append(tally)
                for entry, n_read in _shards(atlas.storage, plan, vocabulary, tally, config.quality):
                    entries += [entry] if entry is not None else []
                    advance(n_read)
                pipeline.check_losses(config, tally.report())
        reports = [tally.report() for tally in tallies]
        done = commit(atlas, plans, entries, reports, config.duplicates, lease.check)
        for report in done.reports:
            key = f"reports/datasets/{report.dataset}/{report.source_digest[:16]}.json"
            atlas.storage.put(key, report.model_dump_json(indent=1).encode())
        purge_replaced(atlas, done, lease)
    return IngestResult(
        atlas=atlas.url,
        snapshot=done.snapshot,
        changed=done.changed,
        reports=tuple(done.reports),
        unchanged=tuple(plan.url for plan in planned if plan not in plans),
        run=write_run(config, atlas.snapshot(done.snapshot), done.reports),
    )


def _as_link(plan: SourcePlan) -> SourcePlan:
    """Return a plan whose identity says that counts stay in place, and which that is."""
    source = open_source(plan)
    try:
        if plan.format != "zarr" or not isinstance(source, AnnDataGroupSource) or not source.is_folder:
            raise SourceError(
                "Only folders of AnnData in zarr can be linked.",
                where=plan.url,
                fix="Ingest it: `cellmill ingest` copies the counts and reads every format.",
            )
        group, layout = source.stored(plan.place)
        if layout != "csr":
            raise SourceError(
                f"The counts in {plan.place} lie {'by columns' if layout == 'csc' else 'as a dense matrix'}: a cell "
                "cannot be read without reading others.",
                where=plan.url,
                fix="Ingest it, or write it again with rows compressed (scipy.sparse.csr_matrix).",
            )
    finally:
        close_source()
    digest = hashlib.sha256(f"linked {plan.digest} {plan.location} {group}".encode()).hexdigest()
    return replace(plan, digest=digest)


def _shards(
    storage: Storage, plan: SourcePlan, vocabulary: Vocabulary, tally: Tally, quality: QualityConfig
) -> Iterator[tuple[ShardEntry | None, int]]:
    """Read a store, and yield each shard with the number of rows that were read for it; None where no cell is kept."""
    source = open_source(plan)
    assert isinstance(source, AnnDataGroupSource)
    assert plan.location is not None
    group, _ = source.stored(plan.place)
    store = Storage.open(plan.location)
    there = {file.key: file for file in list_files(store, group)}
    vectors = open_vectors(store, group, ARRAYS, there.keys())
    size = -(-plan.n_cells // plan.n_shards)
    # In one shard, so that no cell is dealt elsewhere.
    alone = replace(plan, n_shards=1)
    try:
        for number in range(plan.n_shards):
            low, high = min(number * size, plan.n_cells), min((number + 1) * size, plan.n_cells)
            parts = [(max(a, low), min(b, high)) for a, b in plan.chunks if a < high and b > low]
            tables, largest = [], 0
            for start, stop in parts:
                found = process_chunk(alone, source, start, stop, quality)
                rows = found.blocks[0].cells.num_rows if found.blocks else 0
                sizes = np.zeros(plan.n_shards, np.int64)
                sizes[number] = rows
                tally.add(receipt_of(found, stop - start, sizes))
                if rows:
                    block = found.blocks[0]
                    tables.append(block.cells)
                    largest = max(largest, block.largest)
            if not tables:
                yield None, high - low
                continue
            cells = pa.concat_tables(tables, promote_options="permissive").sort_by("source_row")
            tokens = vocabulary.lookup([feature.id for feature in plan.mapping.features]).astype(np.uint32)
            link = Link(
                location=plan.location,
                matrix=group,
                files={key: there[key].size for key in _files(vectors, low, high)},
                largest=largest,
                target=plan.mapping.target,
                binary=plan.mapping.binary,
                tokens=tokens,
                keys=plan.feature_keys,
            )
            yield _write(storage, plan, number, cells, link, vocabulary), high - low
        if {file.key: file for file in list_files(store, group)} != there:
            raise SourceError(
                "The store was changed while it was being read.", where=plan.url, fix="Run again when it is complete."
            )
    finally:
        close_source()


def _files(vectors: Sequence[StoreVector], low: int, high: int) -> list[str]:
    """Return the files that have the counts of rows, or say where these are."""
    indptr, *entries = vectors
    first, last = (int(indptr.read(row, row + 1)[0]) for row in (low, high))
    return [*indptr.files(0, indptr.length), *(key for array in entries for key in array.files(first, last))]


def _write(
    storage: Storage, plan: SourcePlan, number: int, cells: pa.Table, link: Link, vocabulary: Vocabulary
) -> ShardEntry:
    draft = shards.draft(plan, number, cells["n_features"].to_numpy(), link.tokens, vocabulary, layout="anndata")
    storage.put(draft.shard_path, link.to_bytes())
    table = shards.as_table(cells, draft)
    write_cells(storage, draft.cells_path, table)
    digest, size = checksum(storage, shard_keys(storage, draft.dataset, draft.digest, draft.layout))
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return draft.model_copy(update={**summarise(table), "bytes": size, "checksum": digest, "created": created})


def _keys(dataset: str, digest: str) -> list[str]:
    return [f"shards/{dataset}/{digest}.anndata", f"cells/{dataset}/{digest}.parquet"]
