"""The layouts of a shard at once: zarr, an Arrow export, and an AnnData zarr store that is linked.

The rows of a linked store lie as they lie, those of an ingestion in random order. So what stands beside a linked atlas
here is the atlas's own export, and zarr shards of the same rows in the same order, whose counts come from an ingestion.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellmill.atlas import Atlas, read
from cellmill.atlas.cells import CellsFile
from cellmill.atlas.exporting import export_arrow
from cellmill.atlas.shard import read_tokens
from cellmill.atlas.writing import checksum, shard_keys, write_counts
from cellmill.genes import N_SPECIALS
from cellmill.ingestion import ingest
from cellmill.ingestion.linking import link
from cellmill.stream import Position
from cellmill.tokens import PackedBatch
from tests.ingestion.cells import config
from tests.ingestion.test_linking import messy, write_store
from tests.platform.stream.test_stream import content, equal, stream

LAYOUTS = ("zarr", "arrow", "anndata")
SAMPLINGS: tuple[Any, ...] = (
    None,
    {"kind": "balanced", "by": "kind"},
    {"kind": "sets", "by": ["kind"], "size": 4},
)


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Atlas]:
    folder = tmp_path_factory.mktemp("layouts")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        large, small = messy(0, 130), messy(1, 70, start=25)
        small.layers["counts"].data = np.minimum(small.layers["counts"].data, 200)
        stores = [write_store(adata, folder / f"store{i}.zarr", 2 + i) for i, adata in enumerate((large, small))]
        options = {"source": {"obs": {"donor": "kind"}}, "shard_cells": 40, "duplicates": {"min_genes": 1 << 20}}
        ingest(config(folder / "ingested", *stores, **options))
        link(config(folder / "anndata", *stores, **options))
    linked, ingested = Atlas.open(folder / "anndata"), Atlas.open(folder / "ingested")
    assert linked.vocabulary().digest() == ingested.vocabulary().digest()
    with pytest.MonkeyPatch.context() as patch:
        # Batches of few cells, so that runs of rows cross many of them.
        patch.setattr("cellmill.atlas.arrow_writing.CHUNK", 100)
        export_arrow(linked.snapshot(), folder / "arrow")
    return {
        "zarr": as_zarr(linked, ingested, folder / "zarr"),
        "arrow": Atlas.open(folder / "arrow"),
        "anndata": linked,
    }


def as_zarr(linked: Atlas, ingested: Atlas, path: Path) -> Atlas:
    """Write zarr shards with the rows of linked ones, and counts that were ingested."""
    atlas = Atlas.create(path)
    features = linked.vocabulary().features
    atlas.vocabulary_store.allocate(features)
    adata = read(ingested.url)
    matrix, place = adata.X.tocsr(), {cell: row for row, cell in enumerate(adata.obs["cell_id"].tolist())}
    column = {name: number for number, name in enumerate(adata.var_names)}
    entries = []
    for entry in linked.snapshot().shards:
        tokens = read_tokens(linked.storage, entry)
        own = [features[token - N_SPECIALS] for token in tokens.tolist()]
        cells = CellsFile(linked.storage, entry).read(["cell_id", "barcode"])
        counts = matrix[[place[cell] for cell in cells["cell_id"].to_pylist()]][:, [column[one.id] for one in own]]
        counts.sort_indices()
        write_counts(
            atlas.storage,
            f"shards/{entry.dataset}/{entry.digest}.zarr",
            indptr=counts.indptr.astype(np.int64),
            indices=counts.indices,
            data=counts.data.astype(np.uint32),
            features=own,
            tokens=tokens,
            barcodes=cells["barcode"].to_pylist(),
        )
        atlas.storage.put(entry.cells_path, linked.storage.get(entry.cells_path))
        digest, size = checksum(atlas.storage, shard_keys(atlas.storage, entry.dataset, entry.digest))
        told = {"layout": "zarr", "checksum": digest, "bytes": size, "hash_run": ""}
        entries.append(entry.model_copy(update=told))
    atlas.commit(entries)
    return atlas


def ranks_of(atlas: Atlas, world: int, start: Position | None, **changes: Any) -> list[list[PackedBatch]]:
    """Return the batches of each worker, from the beginning of an epoch or from a position."""
    sources = [stream(atlas, rank=rank, world=world, **changes) for rank in range(world)]
    return [list(source.epoch(1) if start is None else source.resume(start)) for source in sources]


@settings(max_examples=8)
@given(
    order=st.fixed_dictionaries(
        {
            "seed": st.integers(0, 99),
            "batch_size": st.sampled_from([16, 32]),
            "lanes": st.sampled_from([2, 4]),
            "run": st.integers(1, 30),
            "window": st.integers(8, 64),
            "where": st.sampled_from([None, "kind != 'd1'"]),
            "sampling": st.sampled_from(SAMPLINGS),
        }
    ),
    groups=st.tuples(*[st.integers(30, 300)] * 6),
    worlds=st.permutations([1, 2]),
    taken=st.integers(0, 4),
    began=st.sampled_from(LAYOUTS),
)
def test_one_plan_one_order_the_same_tokens_and_positions(
    layouts: dict[str, Atlas], order: dict[str, Any], groups: tuple[int, ...], worlds: list[int], taken: int, began: str
) -> None:
    assert {name: {entry.layout for entry in atlas.snapshot().shards} for name, atlas in layouts.items()} == {
        name: {name} for name in LAYOUTS
    }
    first, second = worlds
    whole, rest = {}, {}
    taken = min(taken, stream(layouts[began], **order).steps_per_epoch - 1)
    position = stream(layouts[began], world=first, **order).position(1, taken)
    for i, (name, atlas) in enumerate(layouts.items()):
        whole[name] = ranks_of(atlas, first, None, group_cells=groups[i], **order)
        # What one layout began, another ends, with other workers.
        rest[name] = ranks_of(atlas, second, position, group_cells=groups[3 + i], **order)
    for found in (whole, rest):
        for name in LAYOUTS[1:]:
            for ours, theirs in zip(found["zarr"], found[name], strict=True):
                assert len(ours) == len(theirs)
                assert all(
                    equal(one, other) and one.gene.dtype == other.gene.dtype
                    for one, other in zip(ours, theirs, strict=True)
                )
    if order["sampling"] is None:
        together = [
            [PackedBatch.concatenate(list(step)) for step in zip(*ranks, strict=True)]
            for ranks in (whole["zarr"], rest["zarr"])
        ]
        assert [content(step) for step in together[0][taken:]] == [content(step) for step in together[1]]
        cells = np.concatenate([step.cell_id for step in together[0]])
        assert np.unique(cells).size == cells.size == layouts["zarr"].snapshot().select(order["where"]).n_cells
