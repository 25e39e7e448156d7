"""Withdrawn cells are known again when their columns, their features or their file say something else."""

import json
import os
import re
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
from click.testing import CliRunner

from cellmill.atlas import Atlas
from cellmill.atlas.cell_marks import SCHEMA
from cellmill.atlas.collecting import Forget, collect
from cellmill.atlas.compacting import compact
from cellmill.atlas.exporting import export_arrow
from cellmill.atlas.record import encode
from cellmill.atlas.rollback import rollback
from cellmill.atlas.taken import Taken, read_taken
from cellmill.atlas.withdrawals import Withdrawal, lift
from cellmill.atlas.withdrawing import remove
from cellmill.cli import load
from cellmill.errors import AtlasError, ConfigError, IntegrityError
from cellmill.ingestion import IngestConfig, ingest, linking, pipeline
from cellmill.ingestion.linking import link
from cellmill.ingestion.result import write_run
from tests.ingestion.cells import config, genes, make_adata, write
from tests.ingestion.test_linking import write_store

D1 = "donor = 'd1'"
OBS = {"obs": {"donor": "donor"}}
OTHER = {"obs": {"batch": "donor"}}
KNOWN = "withdrawn (withdrawal 1, the same cells as before)"


@pytest.fixture(autouse=True)
def _without_pages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Pages and plots of each run are not what is tested here, and take most of the time."""
    for module in (pipeline, linking):
        monkeypatch.setattr(module, "write_run", lambda *arguments: tmp_path)


def made(n_cells: int = 30, seed: int = 1) -> Any:
    """Return cells of donors d0 to d2, in batches that are none of these, with a second name for each gene."""
    adata = make_adata(n_cells, seed=seed)
    adata.obs["batch"] = [f"b{i % 4}" for i in range(n_cells)]
    adata.var["other"] = genes(adata.n_vars, 100)
    adata.layers["spliced"] = adata.X * 2
    return adata


def names(atlas: Atlas | Path) -> list[str]:
    opened = atlas if isinstance(atlas, Atlas) else Atlas.open(atlas)
    cells = opened.snapshot()
    return sorted(cells.cells(["barcode"]).column(0).to_pylist()) if cells.shards else []


def without(adata: Any) -> list[str]:
    return sorted(adata.obs_names[adata.obs["donor"] != "d1"])


def withdrawn(folder: Path) -> tuple[Atlas, Any, Path]:
    """Return an atlas of which donor d1 was withdrawn, with no trace of the cells left; the cells, and their file."""
    adata = made()
    path = write(adata, folder / "a.h5ad")
    ingest(config(folder / "atlas", path, source=OBS))
    atlas = Atlas.open(folder / "atlas")
    remove(atlas, D1, "consent")
    collect(atlas, Forget(), grace_s=0)
    return atlas, adata, path


@pytest.mark.parametrize(
    ("source", "settings"),
    [
        ({}, {}),
        ({"counts": "layers/spliced"}, {}),
        ({"genes": "other"}, {}),
        ({"dataset": "renamed"}, {}),
        ({"where": "age < 25"}, {}),
        ({}, {"shard_cells": 7}),
        ({}, {"quality": {"min_genes": 2}}),
    ],
    ids=["columns", "counts", "genes", "data set", "selection", "shards", "quality"],
)
def test_the_same_file_under_another_configuration(
    tmp_path: Path, source: dict[str, Any], settings: dict[str, Any]
) -> None:
    atlas, adata, path = withdrawn(tmp_path)
    if "dataset" in source:
        rollback_to_nothing(atlas)
        path = path.rename(tmp_path / "b.h5ad")
    result = ingest(config(tmp_path / "atlas", path, source={**OTHER, **source}, **settings))
    wanted = without(adata[adata.obs["age"] < 25] if "where" in source else adata)
    assert names(atlas) == wanted
    (report,) = result.reports
    assert report.dropped[KNOWN] == (8 if "where" in source else 10)
    assert report.cells_out == len(wanted)
    assert set(atlas.snapshot().cells(["donor"]).column(0).to_pylist()) == {"b0", "b1", "b2", "b3"}
    atlas.verify().check()


def rollback_to_nothing(atlas: Atlas) -> None:
    atlas.commit(remove=[entry.key for entry in atlas.snapshot().shards])
    collect(atlas, Forget(), grace_s=0)


def test_a_later_version_of_the_file(tmp_path: Path) -> None:
    """Its rows and bytes are others: cells are known by their counts, nearly empty ones by their barcodes as well."""
    atlas, adata, path = withdrawn(tmp_path)
    order = np.random.default_rng(0).permutation(adata.n_obs)
    new = adata[order].copy()
    write(new, path)
    report = ingest(config(tmp_path / "atlas", path, source=OTHER)).reports[0]
    assert report.dropped == {KNOWN: 10}
    assert names(atlas) == without(adata)
    # Now its rows are known, too: under another place, with other genes.
    moved = path.rename(tmp_path / "c.h5ad")
    settings = config(tmp_path / "atlas", moved, source={**OTHER, "dataset": "a", "genes": "other"})
    assert ingest(settings).reports[0].dropped == {KNOWN: 10}
    assert names(atlas) == without(adata)
    # Where the same counts in another data set have a donor, this tells.
    new.obs["age"] += 1
    twins = config(tmp_path / "atlas", write(new, tmp_path / "twins.h5ad"), source=OTHER, duplicates={"policy": "keep"})
    assert ingest(twins).reports[0].dropped == {}
    atlas.commit(remove=[entry.key for entry in atlas.snapshot().shards if entry.dataset == "twins"])
    lift(atlas.storage, 1, "consent given again")
    assert ingest(settings).changed
    assert set(names(atlas)) == set(adata.obs_names)


@pytest.mark.filterwarnings("ignore:zarr v3 autosharding")
@pytest.mark.parametrize("how", [ingest, link])
def test_exact_copies_in_another_file_without_the_column(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, how: Any
) -> None:
    atlas, adata, _ = withdrawn(tmp_path)
    for module in (pipeline, linking):
        monkeypatch.setattr(module, "write_run", write_run)
    copies = ad.concat([adata, make_adata(5, seed=77)])[::-1].copy()
    copies.obs = copies.obs[[]].assign(subject="s")
    path = write_store(copies, tmp_path / "copies.zarr")
    settings = config(tmp_path / "atlas", path, source={"obs": "all"}, duplicates={"policy": "keep"})
    result = how(settings)
    assert result.reports[0].dropped == {KNOWN: 10}
    assert "copies: withdrawal 1 names donor, which this source does not have" in capsys.readouterr().err
    # It stays known: in the report for machines, on the page for people, and in the atlas.
    summary = json.loads((result.run / "summary.json").read_text())
    assert summary["reports"][0]["untold"] == {"1": "donor"}
    assert "withdrawal 1 names donor" in (result.run / "report.html").read_text()
    said = CliRunner().invoke(load("atlas"), ["show", atlas.url, "--dataset", "copies"])
    assert "withdrawal 1 was not asked for want of donor" in said.output
    assert names(atlas) == sorted([*without(adata) * 2, *make_adata(5, seed=77).obs_names])
    atlas.verify().check()


def test_copies_without_the_column_go_with_the_cells(tmp_path: Path) -> None:
    adata = made()
    ingest(config(tmp_path / "atlas", write(adata, tmp_path / "a.h5ad"), source=OBS))
    copies = adata.copy()
    del copies.obs["donor"]
    ingest(config(tmp_path / "atlas", write(copies, tmp_path / "b.h5ad"), duplicates={"policy": "mark"}))
    atlas = Atlas.open(tmp_path / "atlas")
    done = remove(atlas, D1, "consent")
    assert (done.cells, done.known) == ({"a": 10, "b": 10}, 10)
    assert names(atlas) == sorted(without(adata) * 2)
    atlas.verify().check()


def test_a_file_that_is_joined_with_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows of the joined cells are others, and so are their counts: they are known by the file and their barcodes."""
    atlas, adata, path = withdrawn(tmp_path)

    def joined(adata: Any, path: Path) -> IngestConfig:
        proteins = make_adata(adata.n_obs - 6, 5, seed=9)
        proteins.obs_names = adata.obs_names[6:][::-1]
        proteins.var_names = [f"CD{i}" for i in range(5)]
        beside = write(proteins, path.with_suffix(".proteins.h5ad"))
        join = [{"path": str(beside), "modality": "protein"}]
        return config(tmp_path / "atlas", path, source={**OTHER, "join": join, "dataset": f"both-{path.stem}"})

    atlas.commit(remove=[entry.key for entry in atlas.snapshot().shards])
    assert ingest(joined(adata, path)).reports[0].dropped == {"not in a.proteins.h5ad": 6, KNOWN: 8}
    assert names(atlas) == without(adata[6:])
    # Cells that are in the atlas twice, alone and joined: what is learned of the one tells of the other.
    new = made(30, seed=4)
    alone = write(new, tmp_path / "new.h5ad")
    ingest(joined(new, alone))
    capsys.readouterr()
    ingest(config(tmp_path / "atlas", alone, source=OBS, duplicates={"policy": "keep"}))
    assert "8 cells of other sources are cells of withdrawal 1, too" in capsys.readouterr().err
    assert "8 cells of it are in the snapshot" in atlas.verify().damage[0].what
    assert remove(atlas, D1, "consent").known == 8
    atlas.verify().check()
    assert set(names(atlas)) == {*without(adata[6:]), *without(new)}
    # And from the joined files back to one of them.
    remove(atlas, "donor = 'b1' and dataset = 'both-new'", "consent")
    assert ingest(joined(new, alone)).changed is False
    with pytest.raises(ConfigError, match="under the name of another data set"):
        ingest(config(tmp_path / "atlas", alone, source={**OTHER, "dataset": "new"}))


def test_twins_in_one_file(tmp_path: Path) -> None:
    """Of equal cells of one file that have two donors none stays, in whichever shards they are."""
    atlas, adata, path = withdrawn(tmp_path)
    twice = ad.concat([adata, adata[adata.obs["donor"] == "d1"]])
    twice.obs["donor"] = [*adata.obs["donor"], *["d2"] * 10]
    ingest(config(tmp_path / "atlas", write(twice, path), source=OBS, shard_cells=4, duplicates={"policy": "keep"}))
    assert names(atlas) == without(adata)
    atlas.verify().check()


def test_counts_tell_only_where_a_column_of_obs_does(tmp_path: Path) -> None:
    """Whoever withdraws a file by its digest does not withdraw what the next version of it has."""
    adata = made()
    path = write(adata, tmp_path / "a.h5ad")
    ingest(config(tmp_path / "atlas", path, source=OBS))
    atlas = Atlas.open(tmp_path / "atlas")
    digest = atlas.snapshot().shards[0].source_digest
    remove(atlas, f"source_digest = '{digest}'", "corrupt")
    assert not ingest(config(tmp_path / "atlas", path, source=OBS)).changed
    adata.obs["age"] += 1
    ingest(config(tmp_path / "atlas", write(adata, path), source=OBS))
    assert names(atlas) == sorted(adata.obs_names)


def test_cells_that_were_never_in_the_atlas_are_remembered(tmp_path: Path) -> None:
    withdrawn(tmp_path)
    new = made(9, seed=5)
    new.obs["donor"] = "d1"
    path = write(new, tmp_path / "new.h5ad")
    first = ingest(config(tmp_path / "atlas", path, source=OBS))
    assert (first.changed, first.reports[0].cells_out) == (True, 0)
    assert not ingest(config(tmp_path / "atlas", path, source=OBS)).changed
    assert ingest(config(tmp_path / "atlas", path, source=OTHER)).reports[0].dropped == {KNOWN: 9}


def test_links_compactions_rollbacks_and_exports(tmp_path: Path) -> None:
    adata = made()
    store = write_store(adata, tmp_path / "a.zarr")
    atlas = Atlas.create(tmp_path / "atlas")
    link(config(tmp_path / "atlas", store, source=OTHER))
    link(config(tmp_path / "atlas", store, source=OBS))
    # The first snapshot has the same cells under other donors: it must not come back, nor go out.
    remove(atlas, D1, "consent")
    for refused in (lambda: rollback(atlas, 1), lambda: export_arrow(atlas.snapshot(1), tmp_path / "out")):
        with pytest.raises(AtlasError, match="withdrawn since"):
            refused()
    assert link(config(tmp_path / "atlas", store, source=OTHER)).reports[0].dropped == {KNOWN: 10}
    assert names(atlas) == without(adata)
    ingest(config(tmp_path / "atlas", write(made(12, seed=3), tmp_path / "b.h5ad"), source=OTHER))
    compact(atlas, ["a", "b"], shard_cells=9)
    ingest(config(tmp_path / "atlas", tmp_path / "b.h5ad", source=OBS))
    assert names(atlas) == sorted([*without(adata), *without(made(12, seed=3))])
    # An export knows the cells as its atlas does.
    export_arrow(atlas.snapshot(), tmp_path / "out")
    assert Atlas.open(tmp_path / "out").verify().sound
    ingest(config(tmp_path / "out", tmp_path / "b.h5ad", source=OTHER))
    assert names(tmp_path / "out") == names(atlas)
    atlas.verify().check()


def test_a_removal_takes_the_same_cells_from_where_they_have_another_donor(tmp_path: Path) -> None:
    adata = made()
    path = write(adata, tmp_path / "a.h5ad")
    for source in (OBS, OTHER):
        ingest(config(tmp_path / "atlas", path, source=source))
    atlas = Atlas.open(tmp_path / "atlas")
    trial = remove(atlas, D1, "consent", dry_run=True)
    done = remove(atlas, D1, "consent")
    assert (done.cells, done.known) == (trial.cells, trial.known) == ({"a": 10}, 10)
    assert names(atlas) == without(adata)
    report = json.loads(next((tmp_path / "atlas/reports/datasets/a").iterdir()).read_text())
    assert (report["dropped"], report["cells_out"]) == ({KNOWN: 10}, 20)


@pytest.mark.parametrize("what", ["record", "lost record", "cells", "lost cells"])
def test_what_was_changed_or_lost_of_a_withdrawal_stops_verification_and_every_ingestion(
    tmp_path: Path, what: str
) -> None:
    atlas, _, path = withdrawn(tmp_path)
    record = tmp_path / "atlas/withdrawals/0001.json"
    (cells,) = (tmp_path / "atlas/withdrawals/0001").iterdir()
    harmed = record if "record" in what else cells
    content = harmed.read_bytes()
    if what == "record":  # with its checksum computed anew
        fields = {key: value for key, value in json.loads(content).items() if key != "checksum"}
        harmed.write_bytes(encode(Withdrawal(**{**fields, "where": "donor = 'd9'"})))
    elif what == "cells":
        harmed.write_bytes(content[:-20] + bytes([content[-20] ^ 1]) + content[-19:])
    else:
        os.remove(harmed)
    version = atlas.snapshot().version
    said = {"record": "is not what it was", "lost record": "is lost", "cells": "is damaged", "lost cells": "is missing"}
    message = said[what]
    assert re.search(message, atlas.verify().damage[0].what)
    for source in (OBS, OTHER):
        with pytest.raises(IntegrityError, match=message):
            ingest(config(tmp_path / "atlas", path, source=source))
    with pytest.raises(IntegrityError, match=message):
        rollback(atlas, version)
    assert atlas.snapshot().version == version
    harmed.write_bytes(content)
    atlas.verify().check()
    assert ingest(config(tmp_path / "atlas", path, source=OTHER)).reports[0].dropped == {KNOWN: 10}


def test_what_is_kept_of_cells_is_small_and_only_the_newest_list_stays(tmp_path: Path) -> None:
    atlas, adata, path = withdrawn(tmp_path)
    folder = tmp_path / "atlas/withdrawals/0001"
    for number in range(3):
        adata.obs["age"] += number + 1
        ingest(config(tmp_path / "atlas", write(adata, path), source=OTHER))
    assert len(list(folder.iterdir())) == 4
    done = collect(atlas, Forget(), grace_s=0)
    assert done.units["withdrawals"] == 3
    (left,) = folder.iterdir()
    taken = read_taken(atlas.storage, 1, left.stem)
    assert taken.n == 40
    # The counts are the same in every version, and so is what they are mixed into.
    assert sum(table["counts"].is_valid().to_numpy(zero_copy_only=False).sum() for table in taken.tables) == 10
    assert ingest(config(tmp_path / "atlas", path, source=OBS)).reports[0].dropped == {"withdrawn (withdrawal 1)": 10}


def test_many_cells_take_few_bytes() -> None:
    import pyarrow as pa

    n = 100_000
    rows = np.sort(np.random.default_rng(0).choice(10 * n, n, replace=False))
    names, counts = np.random.default_rng(1).integers(0, 1 << 63, (2, n), dtype=np.uint64)
    columns = [pa.repeat(text, n) for text in ("a", "0" * 64, "a.h5ad")] + [pa.array(rows), pa.array(names)]
    known = Taken(pa.table([*columns, pa.array(counts)], schema=SCHEMA))
    assert len(known.to_bytes()) < 17.2 * n  # two numbers of 8 bytes, and where they belong
    known.add(known.tables[0])
    assert (known.n, known.n_by_file()) == (n, {"0" * 64: n})
