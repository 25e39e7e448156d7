"""A snapshot exported as Arrow files: the same atlas to its readers, and plain Arrow to everybody else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from scipy import sparse
from typer.testing import CliRunner

from cellmill.atlas import Atlas, open_shard, read
from cellmill.atlas.cli import app
from cellmill.atlas.collecting import collect
from cellmill.atlas.exporting import export_arrow
from cellmill.atlas.overlay import Overlay, write_overlay
from cellmill.atlas.tags import add_tag
from cellmill.atlas.withdrawing import remove
from cellmill.errors import AtlasError, IntegrityError
from cellmill.genes import N_SPECIALS
from tests.platform.atlas.builders import add_shard, random_counts


def make(path: Path) -> Atlas:
    """Two data sets of different genes, with rows without any count, large counts, and hidden rows."""
    atlas = Atlas.create(path)
    first = random_counts(300, 60, seed=1, largest=300).toarray()
    first[17:20] = 0
    entry = add_shard(atlas, "one", first, genes=range(60)[::-1], obs={"kind": np.arange(300) % 3})
    name = write_overlay(atlas.storage, "one", Overlay(np.array([3, 4, 250], np.uint32), np.zeros(0, np.uint32)))
    hiding = entry.model_copy(update={"overlay": name, "n_cells": 297})
    second = add_shard(atlas, "two", random_counts(80, 50, seed=2, largest=70_000), genes=range(40, 90))
    atlas.commit([hiding, second])
    return atlas


@pytest.fixture
def both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Atlas, Atlas]:
    # Batches of few cells, so that runs of rows cross many of them.
    monkeypatch.setattr("cellmill.atlas.arrow_writing.CHUNK", 200)
    atlas = make(tmp_path / "zarr")
    export_arrow(atlas.snapshot(), tmp_path / "arrow")
    return atlas, Atlas.open(tmp_path / "arrow")


def test_the_export_is_the_same_atlas(both: tuple[Atlas, Atlas]) -> None:
    atlas, export = both
    assert export.exported_from == atlas.snapshot().name
    assert {path.suffix for path in Path(export.url).glob("shards/*/*")} == {".arrow"}
    assert export.verify().sound
    for where in (None, "kind == 1 and n_genes > 10", "dataset == 'two'"):
        ours, theirs = read(export.url, where=where), read(atlas.url, where=where)
        assert (ours.X != theirs.X).nnz == 0
        assert ours.obs.equals(theirs.obs)
        assert ours.var.equals(theirs.var)


def test_any_rows_in_any_order(both: tuple[Atlas, Atlas]) -> None:
    atlas, export = both
    rng = np.random.default_rng(0)
    for entry, exported in zip(atlas.snapshot().shards, export.snapshot().shards, strict=True):
        ours, theirs = open_shard(export.storage, exported), open_shard(atlas.storage, entry)
        assert np.array_equal(ours.tokens, theirs.tokens)
        for _ in range(30):
            starts = rng.integers(0, entry.n_rows, 5)
            stops = np.minimum(starts + rng.integers(0, 60, 5), entry.n_rows)
            for one, other in zip(ours.gather(starts, stops), theirs.gather(starts, stops), strict=True):
                assert one.dtype == other.dtype
                assert np.array_equal(one, other)


def test_arrow_alone_reads_the_counts(both: tuple[Atlas, Atlas]) -> None:
    atlas, export = both
    features = [feature.id for feature in atlas.vocabulary().features]
    for entry in export.snapshot().shards:
        with pa.memory_map(str(Path(export.url) / entry.shard_path)) as file:
            table = pa.ipc.open_file(file).read_all()
        table.validate(full=True)
        lengths = table["genes"].combine_chunks().value_lengths().to_numpy()
        genes = np.concatenate(table["genes"].to_numpy())
        counts = np.concatenate(table["counts"].to_numpy())
        matrix = sparse.csr_matrix(
            (counts, genes - N_SPECIALS, np.concatenate([[0], np.cumsum(lengths)])), shape=(entry.n_rows, len(features))
        )
        cells = atlas.snapshot().shard_cells(entry, ["cell_id", "barcode"])
        assert table.select(["cell_id", "barcode"]).equals(cells.cast(table.select(["cell_id", "barcode"]).schema))
        visible = table["cell_id"].to_numpy()
        found = read(atlas.url, where=f"dataset == '{entry.dataset}'")
        rows = [int(np.flatnonzero(visible == cell)[0]) for cell in found.obs["cell_id"]]
        columns = [features.index(name) for name in found.var_names]
        assert (matrix[rows][:, columns] != found.X).nnz == 0


def test_flipped_bytes_are_found_by_verification_and_by_reading(both: tuple[Atlas, Atlas]) -> None:
    _, export = both
    entry = export.snapshot().shards[1]
    path = Path(export.url) / entry.shard_path
    good = path.read_bytes()
    right = open_shard(export.storage, entry).gather([0], [entry.n_rows])
    rng = np.random.default_rng(3)
    refused = []
    for i in range(120):
        bad = bytearray(good)
        bad[rng.integers(len(bad))] ^= 1 << int(rng.integers(8))
        path.write_bytes(bad)
        try:
            found = open_shard(export.storage, entry).gather([0], [entry.n_rows])
        except IntegrityError as error:
            refused.append(error.where)
        else:
            # What was flipped is names, padding, or what is read by others only.
            assert all(np.array_equal(one, other) for one, other in zip(found, right, strict=True))
        if i < 20:
            assert not export.verify().sound
    assert len(refused) > 40
    assert all(entry.digest in where for where in refused)
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(IntegrityError, match=entry.digest):
        open_shard(export.storage, entry)
    path.unlink()
    with pytest.raises(IntegrityError, match=entry.digest):
        open_shard(export.storage, entry)


def test_a_tag_is_exported_and_a_cut_off_export_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    atlas = make(tmp_path / "zarr")
    add_tag(atlas, "paper")
    atlas.commit([add_shard(atlas, "three", random_counts(10, 10))])
    written = []

    def stop(n: int) -> None:
        written.append(n)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_arrow(atlas.snapshot("paper"), tmp_path / "out", progress=stop)
    assert written == [297]
    result = CliRunner().invoke(
        app, ["export", atlas.url, str(tmp_path / "out"), "--format", "arrow", "--version", "paper"]
    )
    assert result.exit_code == 0, result.output
    export = Atlas.open(tmp_path / "out")
    assert export.verify().sound
    assert [entry.key for entry in export.snapshot().shards] == [entry.key for entry in atlas.snapshot("paper").shards]
    with pytest.raises(AtlasError, match="no export of"):
        export_arrow(atlas.snapshot(), tmp_path / "out")
    with pytest.raises(AtlasError, match="no export of"):
        export_arrow(atlas.snapshot(), atlas.url)


def test_cells_are_withdrawn_from_an_export_as_from_any_atlas(both: tuple[Atlas, Atlas]) -> None:
    atlas, export = both
    remove(export, "kind == 1", reason="consent")
    assert export.snapshot().n_cells == atlas.snapshot().select("kind != 1 or kind is null").n_cells
    assert export.verify().sound
    ours, theirs = read(export.url), read(atlas.url, where="kind != 1 or kind is null")
    assert (ours.X != theirs.X).nnz == 0
    collect(export, None, grace_s=0)
    assert export.verify().sound
    with pytest.raises(AtlasError, match="withdrawn since"):
        export_arrow(export.snapshot(1), Path(export.url).parent / "again")
    assert not (Path(export.url).parent / "again").exists()
    again = export_arrow(export.snapshot(), Path(export.url).parent / "again")
    assert Atlas.open(again.atlas).verify().sound
