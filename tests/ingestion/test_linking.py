"""AnnData zarr stores that are linked: the cells of an ingestion, without a copy of their counts."""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from scipy import sparse

from cellmill.atlas import Atlas, open_shard, read
from cellmill.atlas.collecting import Forget, collect
from cellmill.atlas.compacting import compact
from cellmill.atlas.link import ARRAYS, read_link
from cellmill.atlas.withdrawing import remove
from cellmill.cli import load
from cellmill.errors import CountsError, IntegrityError, SourceError
from cellmill.ingestion import ingest
from cellmill.ingestion.linking import link
from cellmill.stream import Stream, StreamConfig, reader
from cellmill.tokens import TokenConfig, Tokeniser
from tests.ingestion.cells import config, counts, make_adata
from tests.platform.stream.test_stream import content, stream


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def messy(seed: int = 0, n_cells: int = 90, start: int = 0) -> Any:
    """Return cells with unknown genes, two columns of one gene, stored zeros, columns in any order, and poor cells."""
    adata = make_adata(n_cells, 40, seed, start=start)
    names = adata.var_names.tolist()
    names[3], names[7], names[11] = names[20], "not-a-gene", f"{names[11]}.4"
    adata.var_names = names
    matrix = sparse.csr_matrix(adata.X)
    matrix.data[::17] = 0
    matrix[5] = 0
    order = np.random.default_rng(seed)
    for row in range(n_cells):
        part = slice(matrix.indptr[row], matrix.indptr[row + 1])
        shuffled = order.permutation(part.stop - part.start)
        matrix.indices[part], matrix.data[part] = matrix.indices[part][shuffled], matrix.data[part][shuffled]
    matrix.has_sorted_indices = False
    adata.layers["counts"] = matrix
    adata.X = sparse.csr_matrix(np.log1p(matrix.toarray()))
    return adata


def write_store(adata: Any, path: Path, version: Any = 3, **settings: Any) -> Path:
    group = zarr.open_group(path, mode="w", zarr_format=version)
    ad.io.write_elem(group, "/", adata, dataset_kwargs=settings)
    return path


def rechunked(store: Path, chunk: int, shard: int | None = None) -> Path:
    """Write the counts of a store again, in chunks of so many entries."""
    group: Any = zarr.open_group(store)["layers/counts"]
    for name in ("indptr", "indices", "data"):
        shards = None if shard is None else (shard,)
        group.create_array(name, data=group[name][:], overwrite=True, chunks=(chunk,), shards=shards)
    return store


def tree(path: Path) -> dict[str, str]:
    files = (file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def forget() -> None:
    """Let go of open shards, as a new process has none."""
    reader._SHARDS = type(reader._SHARDS)(reader._OPEN_BYTES)


def all_tokens(atlas: Atlas, where: str | None = None) -> dict[int, Any]:
    """Return the tokens and values of each cell of an epoch."""
    config = StreamConfig(batch_size=16, lanes=4, group_cells=32, window=16, run=8)
    source = Stream(atlas.snapshot().select(where), Tokeniser(TokenConfig(max_genes=50)), config)
    found = {}
    for packed in source.epoch(0):
        for cell in range(packed.n_cells):
            part = slice(packed.cu_seqlens[cell], packed.cu_seqlens[cell + 1])
            found[int(packed.cell_id[cell])] = sorted(
                zip(packed.gene[part].tolist(), packed.value[part].tolist(), strict=True)
            )
    return found


@pytest.mark.parametrize(("version", "chunks"), [(2, ()), (3, ()), (3, (13, 39))])
def test_cells_are_those_of_an_ingestion(tmp_path: Path, version: int, chunks: tuple[int, ...]) -> None:
    store = write_store(messy(), tmp_path / "a.zarr", version)
    if chunks:
        rechunked(store, *chunks)
    before = tree(store)
    options = {"source": {"obs": "all"}, "shard_cells": 40}
    ingested, linked = (
        ingest(config(tmp_path / "copy", store, **options)),
        link(config(tmp_path / "in", store, **options)),
    )
    copy, place = Atlas.open(tmp_path / "copy"), Atlas.open(tmp_path / "in")
    assert {entry.layout for entry in place.snapshot().shards} == {"anndata"}
    assert len(place.snapshot().shards) == 3
    assert tree(store) == before
    assert all_tokens(place) == all_tokens(copy)
    assert all_tokens(place, "donor == 'd1'") == all_tokens(copy, "donor == 'd1'") != all_tokens(place)
    assert counts(place).equals(counts(copy))
    columns = ["cell_id", "barcode", "donor", "age", "n_genes", "n_counts", "content_hash", "source_row"]
    ours, theirs = (atlas.snapshot().cells(columns).sort_by("source_row") for atlas in (place, copy))
    assert ours.equals(theirs)
    told = {"shards": 0, "hash_bytes_read": 0}
    assert linked.reports[0].model_copy(update=told) == ingested.reports[0].model_copy(update=told)
    assert linked.reports[0].dropped
    assert linked.reports[0].genes.umis_lost > 0
    assert place.verify().sound
    entry = place.snapshot().shards[0]
    shard = open_shard(place.storage, entry)
    whole = shard.gather([0], [shard.n_rows])
    for rows in ([3, 9, 11], [5, 5, 20], [26, 0, 7]):
        part = shard.gather(rows, [row + 2 for row in rows])
        wanted = np.concatenate([np.arange(whole[2][row], whole[2][row + 2]) for row in rows])
        assert np.array_equal(part[0], whole[0][wanted])
        assert np.array_equal(part[1], whole[1][wanted])
    # Linking the same again changes nothing.
    again = link(config(tmp_path / "in", store, **options))
    assert (again.changed, again.unchanged) == (False, (str(store),))


def test_a_changed_store_is_refused_by_name_until_it_is_linked_again(tmp_path: Path) -> None:
    store = write_store(messy(), tmp_path / "a.zarr")
    link(config(tmp_path / "atlas", store))
    atlas = Atlas.open(tmp_path / "atlas")
    write_store(messy(1), store)
    for look in (lambda: all_tokens(Atlas.open(atlas.url)), lambda: atlas.verify().check()):
        with pytest.raises(IntegrityError) as caught:
            look()
        assert str(store) in f"{caught.value.what} {caught.value.where}"
    assert link(config(tmp_path / "atlas", store)).changed
    assert len(Atlas.open(atlas.url).snapshot().shards) == 1
    assert len(all_tokens(atlas)) == atlas.snapshot().n_cells
    shutil.rmtree(store)
    with pytest.raises(IntegrityError, match=str(store)):
        all_tokens(Atlas.open(atlas.url))


@pytest.mark.parametrize("chunks", [(200,), (100, 300)])
def test_damage_is_that_of_the_shards_that_have_it(tmp_path: Path, chunks: tuple[int, ...]) -> None:
    store = rechunked(write_store(messy(), tmp_path / "a.zarr"), *chunks)
    link(config(tmp_path / "atlas", store, source={"obs": {"donor": "kind"}}, shard_cells=25))
    atlas = Atlas.open(tmp_path / "atlas")
    whole = [content(batch) for batch in stream(atlas).epoch(0)]
    of = {f"{entry.dataset}/{entry.digest}": read_link(atlas.storage, entry).files for entry in atlas.snapshot().shards}
    assert len(of) == 4
    path = sorted((store / "layers/counts/data/c").iterdir(), key=lambda path: int(path.name))[2]
    good = path.read_bytes()
    lost = {name for name, files in of.items() if path.relative_to(store).as_posix() in files}
    assert 0 < len(lost) < 4
    for content_now in (good[:9] + bytes([good[9] ^ 4]) + good[10:], good[:-5], None):
        path.unlink() if content_now is None else path.write_bytes(content_now)
        forget()
        with pytest.raises(IntegrityError, match=str(store)):
            list(stream(Atlas.open(atlas.url)).epoch(0))
        forget()
        source = stream(Atlas.open(atlas.url), on_corrupt="skip")
        found = [content(batch) for batch in source.epoch(0)]
        # A flipped bit of a file with several chunks is that of one chunk.
        gone = set(source.skipped)
        assert gone == lost or (len(chunks) == 2 and content_now and len(content_now) == len(good) and gone < lost)
        assert gone
        assert sum(map(len, found)) == source.n_cells - sum(source.skipped.values())
        assert all(batch.items() <= before.items() for batch, before in zip(found, whole, strict=True))
        assert {name for name in of if any(name.partition("/")[2] in one.what for one in atlas.verify().damage)} == gone
    path.write_bytes(good)
    forget()
    assert [content(batch) for batch in stream(atlas).epoch(0)] == whole


def test_a_store_that_was_only_touched_is_as_good_as_before(tmp_path: Path) -> None:
    store = write_store(messy(), tmp_path / "a.zarr")
    settings = config(tmp_path / "atlas", store)
    link(settings)
    atlas = Atlas.open(tmp_path / "atlas")
    before = all_tokens(atlas)
    shutil.copytree(store, tmp_path / "copy")
    shutil.rmtree(store)
    shutil.copytree(tmp_path / "copy", store, copy_function=shutil.copyfile)
    forget()
    assert all_tokens(atlas) == before
    assert atlas.verify().sound
    again = link(settings)
    assert (again.changed, again.unchanged) == (False, (str(store),))


def test_the_bench_counts_the_files_of_the_store_once(tmp_path: Path) -> None:
    store = rechunked(write_store(messy(), tmp_path / "a.zarr"), 300)
    link(config(tmp_path / "atlas", store, shard_cells=40))
    command = ["bench", str(tmp_path / "atlas"), "--batch-size", "16", "--cells", "90", "--by", "dataset", "--json"]
    result = CliRunner().invoke(load("stream"), command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    # Two chunks have rows of two shards each.
    matrix = [path for name in ARRAYS for path in (store / "layers/counts" / name).rglob("*") if path.is_file()]
    shards = Atlas.open(tmp_path / "atlas").snapshot().shards
    whole = sum(path.stat().st_size for path in matrix) + sum(entry.bytes for entry in shards)
    assert len(shards) == 3
    told = json.loads(result.stdout)["disk_bytes_per_cell"]
    assert told == pytest.approx(whole / sum(entry.n_rows for entry in shards))


def test_withdrawing_rewrites_a_linked_shard_and_collecting_spares_the_store(tmp_path: Path) -> None:
    store = write_store(messy(), tmp_path / "a.zarr")
    link(config(tmp_path / "atlas", store, source={"obs": "all"}))
    atlas = Atlas.open(tmp_path / "atlas")
    whole, before = all_tokens(atlas), tree(store)
    assert remove(atlas, "donor == 'd1'", "consent").rewritten == 1
    assert {entry.layout for entry in atlas.snapshot().shards} == {"zarr"}
    left = all_tokens(atlas)
    assert left == {cell: tokens for cell, tokens in whole.items() if cell in left}
    assert len(atlas.snapshot(1).cells(["cell_id"])) == len(whole) > len(left) > 0
    collected = collect(atlas, Forget(), grace_s=0)
    assert collected.units["shards"] == 1
    assert not list((tmp_path / "atlas" / "shards").rglob("*.anndata"))
    assert tree(store) == before
    assert all_tokens(atlas) == left
    # Linked again, the withdrawn cells stay away.
    link(config(tmp_path / "atlas", store, source={"obs": "all"}))
    assert all_tokens(atlas) == left


def test_other_layouts_and_formats_are_refused_with_a_way_out(tmp_path: Path) -> None:
    adata = make_adata(20)
    adata.write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(SourceError, match="Only folders") as caught:
        link(config(tmp_path / "atlas", tmp_path / "a.h5ad"))
    assert "cellmill ingest" in caught.value.fix
    for name, matrix in {"by columns": sparse.csc_matrix(adata.X), "dense": adata.X.toarray()}.items():
        adata.X = matrix
        store = write_store(adata, tmp_path / f"{name.split()[0]}.zarr")
        with pytest.raises(SourceError, match=name):
            link(config(tmp_path / "atlas", store))
    adata.X = sparse.csr_matrix(adata.X) / 3.0
    with pytest.raises(CountsError):
        link(config(tmp_path / "atlas", write_store(adata, tmp_path / "shares.zarr")))
    assert not (tmp_path / "atlas").exists() or Atlas.open(tmp_path / "atlas").snapshot().n_cells == 0


def test_the_command(tmp_path: Path) -> None:
    stores = [str(write_store(messy(seed), tmp_path / f"s{seed}.zarr")) for seed in range(2)]
    found = CliRunner().invoke(load("atlas"), ["link", str(tmp_path / "atlas"), *stores, "--dataset", "mine"])
    assert found.exit_code == 0, found.output
    assert "89 of 90 cells linked" in found.output
    assert "Snapshot 1" in found.output
    assert read(tmp_path / "atlas").n_obs == 178
    assert {entry.dataset for entry in Atlas.open(tmp_path / "atlas").snapshot().shards} == {"mine"}


def test_a_compaction_leaves_linked_stores_alone_unless_they_are_named(tmp_path: Path) -> None:
    store = write_store(messy(1), tmp_path / "linked.zarr")
    own = tmp_path / "own.h5ad"
    make_adata(40, seed=7).write_h5ad(own)
    settings = config(tmp_path / "atlas", store, source={"counts": "layers/counts"}, shard_cells=40)
    link(settings)
    ingest(config(tmp_path / "atlas", own))
    atlas = Atlas.open(tmp_path / "atlas")
    cells = counts(atlas)
    done = compact(atlas, shard_cells=20)
    assert (done.left_out, list(done.datasets)) == (("linked",), ["own"])
    assert compact(atlas, ["linked", "own"], shard_cells=20).changed
    assert {entry.layout for entry in atlas.snapshot().shards} == {"zarr"}
    assert not link(settings).changed
    shutil.rmtree(store)
    assert counts(atlas).equals(cells)
    assert atlas.verify().sound
