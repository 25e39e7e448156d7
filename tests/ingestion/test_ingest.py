import json
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from cellmill.atlas import Atlas, read
from cellmill.config import parse_config
from cellmill.errors import ConfigError, IntegrityError, LockError, SourceError
from cellmill.genes import N_SPECIALS
from cellmill.genes.vocabulary import write_features
from cellmill.ingestion import IngestConfig, ingest, tasks
from cellmill.runs import Run
from tests.ingestion.cells import config, counts, expected, genes, make_adata, write
from tests.platform.atlas.builders import make_features

NAMES = genes(12)


@st.composite
def matrices(draw: Any) -> Any:
    n = draw(st.integers(1, 12))
    cells = st.dictionaries(st.integers(0, 15), st.sampled_from([1, 2, 255, 256, 65_535, 65_536, 2**24]), max_size=8)
    rows = [draw(cells) for _ in range(n)]
    dense = np.zeros((n, 16))
    for i, row in enumerate(rows):
        dense[i, list(row)] = list(row.values())
    # Two columns of one gene, two that no table knows.
    columns = [*NAMES, f"{NAMES[0]}.7", f"{NAMES[3]}.2", "no-such-gene", "nor-this"]
    order = draw(st.permutations(range(16)))
    return ad.AnnData(
        X=sparse.csr_matrix(dense[:, order]),
        obs=pd.DataFrame(index=[f"c{i}" for i in range(n)]),
        var=pd.DataFrame(index=[columns[i] for i in order]),
    )


@settings(max_examples=15, deadline=None)
@given(matrices(), st.integers(1, 8))
def test_counts_in_are_counts_out(tmp_path_factory: pytest.TempPathFactory, adata: Any, shard_cells: int) -> None:
    path = tmp_path_factory.mktemp("roundtrip")
    wanted = adata[:, ~adata.var_names.str.startswith("no")].copy()
    wanted.var_names = [name.partition(".")[0] for name in wanted.var_names]
    frame = expected([wanted])
    frame = frame[frame.sum(axis=1) > 0]
    settings_ = config(
        path / "atlas",
        write(adata, path / "a.h5ad"),
        shard_cells=shard_cells,
        genes={"max_umis_lost": 1.0},
        duplicates={"policy": "keep"},
    )
    if frame.empty:
        return
    result = ingest(settings_)
    found = counts(path / "atlas")
    pd.testing.assert_frame_equal(found, frame)
    (report,) = result.reports
    assert (report.cells_in, report.cells_out) == (adata.n_obs, len(frame))
    assert sum(report.dropped.values()) == adata.n_obs - len(frame)
    assert sum(report.genes.umis.values()) == adata.X.sum()
    assert Atlas.open(path / "atlas").verify().sound


def test_metadata_and_lineage(tmp_path: Path) -> None:
    adata = make_adata(30)
    adata.obs["tissue"] = "lung"
    adata.obs["row"] = 7
    adata.obs["note"] = pd.Series(["x", None] * 15, index=adata.obs_names, dtype=object)
    path = write(adata, tmp_path / "lungs.h5ad")
    names = {"donor": "donor_id", "age": "age", "row": "row", "note": "note"}
    result = ingest(config(tmp_path / "atlas", path, source={"obs": names}, shard_cells=8))
    snapshot = Atlas.open(tmp_path / "atlas").snapshot()
    cells = snapshot.cells().to_pandas().set_index("barcode").loc[adata.obs_names]
    assert cells["donor_id"].tolist() == adata.obs["donor"].tolist()
    assert cells["age"].tolist() == adata.obs["age"].tolist()
    assert set(cells["tissue"]) == {"lung"}
    assert cells["source_row"].tolist() == list(range(30))
    assert set(cells["obs_row"]) == {7}
    assert cells["note"].isna().sum() == 15
    assert set(cells["dataset"]) == {"lungs"}
    assert cells["n_counts"].tolist() == adata.X.sum(axis=1).A1.tolist()
    (source,) = snapshot.lineage().sources()
    assert (source.location, source.facts["licence"]) == (str(path), "CC0")
    run = Run.open(result.run)
    assert run.kind == "ingest"
    assert {p.stem for p in (run.path / "plots").glob("*.png")} == {"genes_and_umis", "cells"}
    assert run.read_lineage().sources() == (source,)
    report = json.loads(next((tmp_path / "atlas/reports/datasets/lungs").glob("*.json")).read_text())
    assert report["cells_out"] == 30


def test_rows_are_shuffled_the_same_whatever_the_chunks(tmp_path: Path) -> None:
    path = write(make_adata(200), tmp_path / "a.h5ad")
    one_chunk = config(tmp_path / "one", path, shard_cells=64)
    ingest(one_chunk)
    ingest(many_chunks(one_chunk.model_copy(update={"atlas": str(tmp_path / "many")})))
    one, many_ = (Atlas.open(tmp_path / name).snapshot() for name in ("one", "many"))
    assert [e.checksum for e in one.shards] == [e.checksum for e in many_.shards]
    rows = one.cells(["source_row"]).column(0).to_numpy()
    assert sorted(rows) == list(range(200))
    assert abs(np.corrcoef(rows, np.arange(200))[0, 1]) < 0.5


def many_chunks(settings_: Any) -> Any:
    """Return a configuration whose chunks are about seven cells."""

    class Small(type(settings_)):  # type: ignore[misc]
        task_memory_mb: float = 0.06

    return Small.model_validate({**settings_.model_dump(), "task_memory_mb": 0.06})


def test_the_same_input_twice_changes_nothing(tmp_path: Path) -> None:
    path = write(make_adata(), tmp_path / "a.h5ad")
    first = ingest(config(tmp_path / "atlas", path))
    before = listing(tmp_path / "atlas")
    second = ingest(config(tmp_path / "atlas", path))
    assert (first.changed, second.changed, second.snapshot) == (True, False, first.snapshot)
    assert second.unchanged == (str(path),)
    assert listing(tmp_path / "atlas") == before


def listing(atlas: Path) -> dict[str, int]:
    files = (p for p in atlas.rglob("*") if p.is_file() and "reports" not in p.parts)
    return {str(p): p.stat().st_mtime_ns for p in files}


def test_a_new_file_of_a_data_set_is_added_and_a_changed_one_replaced(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    first, second = make_adata(20, seed=1), make_adata(30, seed=2, start=10)
    write(first, tmp_path / "in/a.h5ad")
    pattern = config(tmp_path / "atlas", tmp_path / "in/*.h5ad", source={"dataset": "both"})
    ingest(pattern)
    write(second, tmp_path / "in/b.h5ad")
    result = ingest(pattern)
    assert len(result.unchanged) == 1
    assert [report.cells_in for report in result.reports] == [30]
    pd.testing.assert_frame_equal(counts(tmp_path / "atlas"), expected([first, second]))
    first.X[0, 0] = 99
    write(first, tmp_path / "in/a.h5ad")
    assert ingest(pattern).snapshot == 3
    pd.testing.assert_frame_equal(counts(tmp_path / "atlas"), expected([first, second]))
    assert Atlas.open(tmp_path / "atlas").snapshot(1).n_cells == 20
    assert Atlas.open(tmp_path / "atlas").verify().sound


def test_a_crashed_run_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adata = make_adata(60)
    path = write(adata, tmp_path / "a.h5ad")
    whole = config(tmp_path / "undisturbed", path, shard_cells=20)
    ingest(whole)
    crashing = config(tmp_path / "atlas", path, shard_cells=20)
    made: list[int] = []
    real = tasks.MakeShard.__call__

    def dies_at_the_third(self: Any, number: int) -> Any:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(number)
        return real(self, number)

    monkeypatch.setattr(tasks.MakeShard, "__call__", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        ingest(crashing)
    monkeypatch.setattr(tasks.MakeShard, "__call__", real)
    atlas = Atlas.open(tmp_path / "atlas")
    assert atlas.snapshot().n_cells == 0
    written = {p: p.stat().st_mtime_ns for p in (tmp_path / "atlas/shards").rglob("*") if p.is_file()}
    assert written

    def never(*_: Any) -> Any:
        raise AssertionError("what was read is read again")

    monkeypatch.setattr(tasks.ReadChunk, "_read", never)
    result = ingest(crashing)
    assert result.reports[0].cells_out == 60
    assert {p: p.stat().st_mtime_ns for p in written} == written
    assert not list((tmp_path / "atlas/staging").rglob("*.block"))
    found, wanted = atlas.snapshot().shards, Atlas.open(tmp_path / "undisturbed").snapshot().shards
    assert [(e.digest, e.checksum) for e in found] == [(e.digest, e.checksum) for e in wanted]
    assert atlas.verify().sound


def test_files_without_a_commit_are_committed_by_the_next_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cellmill.ingestion import pipeline

    path = write(make_adata(), tmp_path / "a.h5ad")

    def dies(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "commit", dies)
        with pytest.raises(KeyboardInterrupt):
            ingest(config(tmp_path / "atlas", path))
    assert Atlas.open(tmp_path / "atlas").snapshot().n_cells == 0
    result = ingest(config(tmp_path / "atlas", path))
    assert (result.changed, result.snapshot) == (True, 1)
    assert Atlas.open(tmp_path / "atlas").verify().sound


def test_lost_staged_cells_stop_the_run_and_the_next_one_reads_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(make_adata(40), tmp_path / "a.h5ad")
    real = tasks.MakeShard.__call__

    def loses(self: Any, number: int) -> Any:
        next((tmp_path / "atlas/staging").rglob("*.block")).unlink()
        return real(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(tasks.MakeShard, "__call__", loses)
        with pytest.raises((IntegrityError, ValueError)):
            ingest(many_chunks(config(tmp_path / "atlas", path)))
    assert Atlas.open(tmp_path / "atlas").snapshot().n_cells == 0
    ingest(many_chunks(config(tmp_path / "atlas", path)))
    assert Atlas.open(tmp_path / "atlas").snapshot().n_cells == 40


def test_the_same_file_under_two_names_is_refused(tmp_path: Path) -> None:
    path = write(make_adata(), tmp_path / "a.h5ad")
    (tmp_path / "b.h5ad").write_bytes(path.read_bytes())
    with pytest.raises(ConfigError, match="same content"):
        ingest(config(tmp_path / "atlas", path, tmp_path / "b.h5ad"))
    ingest(config(tmp_path / "atlas", path))
    with pytest.raises(ConfigError, match="already, as data set 'a'"):
        ingest(config(tmp_path / "atlas", tmp_path / "b.h5ad"))
    assert Atlas.open(tmp_path / "atlas").snapshot().version == 1


def test_of_two_names_for_one_file_at_once_the_later_is_refused(tmp_path: Path) -> None:
    """The other ingestion runs to its end while this one has planned its commit but not made it."""
    path = write(make_adata(), tmp_path / "a.h5ad")
    (tmp_path / "b.h5ad").write_bytes(path.read_bytes())
    root = tmp_path / "atlas"
    once = iter([True])

    def other() -> None:
        if next(once, False):
            ingest(config(root, tmp_path / "b.h5ad"))

    with pytest.raises(ConfigError, match="already, as data set 'b'"):
        ingest(config(root, path), guard=other)
    snapshot = Atlas.open(root).snapshot()
    assert (snapshot.version, {entry.dataset for entry in snapshot.shards}) == (1, {"b"})


def test_an_anndata_in_memory(tmp_path: Path) -> None:
    adata = make_adata(25)
    adata.layers["counts"] = adata.X.copy()
    adata.X = sparse.csr_matrix(np.log1p(adata.X.toarray()))
    result = ingest(adata, atlas=tmp_path / "atlas", dataset="mine", licence="MIT")
    assert result.reports[0].counts == "layers/counts"
    back = read(tmp_path / "atlas")
    assert set(back.obs["donor"]) == {"d0", "d1", "d2"}
    assert not ingest(adata, atlas=tmp_path / "atlas", dataset="mine", licence="MIT").changed
    with pytest.raises(ConfigError, match="where it goes"):
        ingest(adata)


def test_an_atlas_that_was_read_out_comes_back_the_same(tmp_path: Path) -> None:
    adata = make_adata(25)
    ingest(adata, atlas=tmp_path / "one", dataset="mine")
    ingest(read(tmp_path / "one"), atlas=tmp_path / "two", dataset="again")
    pd.testing.assert_frame_equal(counts(tmp_path / "two"), counts(tmp_path / "one"))


def test_a_source_of_another_licence_is_refused() -> None:
    data = {"atlas": "a", "sources": [{"path": "b.h5ad", "licence": "CC-BY-NC-4.0"}], "require_licence": ["CC0-1.0"]}
    with pytest.raises(ConfigError, match=r"b\.h5ad has the licence 'CC-BY-NC-4\.0'.*only CC0-1\.0"):
        parse_config(IngestConfig, data, where="ingest.yaml")
    assert parse_config(IngestConfig, data | {"require_licence": ["CC0-1.0", "CC-BY-NC-4.0"]}, where="").sources


def test_a_guard_that_raises_keeps_the_commit_from_being_made(tmp_path: Path) -> None:
    def lost() -> None:
        raise LockError("The lock was lost.")

    settings_ = config(tmp_path / "atlas", write(make_adata(), tmp_path / "a.h5ad"))
    with pytest.raises(LockError):
        ingest(settings_, guard=lost)
    assert Atlas.open(tmp_path / "atlas").snapshot().n_cells == 0
    assert ingest(settings_, guard=lambda: None).changed


def test_a_run_that_is_overtaken_takes_the_shards_of_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(make_adata(40), tmp_path / "a.h5ad")
    real = tasks.MakeShard._write
    overtaken: list[int] = []

    def slowly(self: Any, *about: Any) -> Any:
        if not overtaken:
            overtaken.append(1)
            ingest(config(tmp_path / "atlas", path, shard_cells=20))
        return real(self, *about)

    monkeypatch.setattr(tasks.MakeShard, "_write", slowly)
    result = ingest(config(tmp_path / "atlas", path, shard_cells=20))
    assert (overtaken, result.snapshot, result.changed) == ([1], 1, False)
    assert Atlas.open(tmp_path / "atlas").verify().sound


def test_a_damaged_shard_that_a_run_left_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cellmill.ingestion import pipeline

    path = write(make_adata(40), tmp_path / "a.h5ad")

    def dies(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "commit", dies)
        with pytest.raises(KeyboardInterrupt):
            ingest(config(tmp_path / "atlas", path))
    (counts_file,) = (tmp_path / "atlas/shards").rglob("X/data/c/0")
    content = bytearray(counts_file.read_bytes())
    content[3] ^= 1
    counts_file.write_bytes(bytes(content))
    ingest(config(tmp_path / "atlas", path))
    assert Atlas.open(tmp_path / "atlas").verify().sound


def test_an_output_that_is_taken_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    path = write(make_adata(20), tmp_path / "a.h5ad")
    ingest(config(tmp_path / "one", path, output=tmp_path / "run"))
    with pytest.raises(ConfigError, match="already holds a run"):
        ingest(config(tmp_path / "two", path, output=tmp_path / "run"))
    assert not (tmp_path / "two").exists()


def test_a_lost_vocabulary_is_neither_extended_nor_read(tmp_path: Path) -> None:
    root = tmp_path / "atlas"
    ingest(config(root, write(make_adata(20, seed=1), tmp_path / "a.h5ad")))
    ingest(config(root, write(make_adata(20, seed=2, start=40), tmp_path / "b.h5ad")))
    other = config(root, write(make_adata(20, seed=3, start=80), tmp_path / "c.h5ad"))
    first, last = (root / f"vocabulary/{name}.parquet" for name in ("000", "001"))
    one, two = first.read_bytes(), last.read_bytes()
    for content in ([], [one], [write_features(make_features(range(80)), N_SPECIALS)]):
        last.unlink(missing_ok=True)
        first.unlink(missing_ok=True)
        for path, data in zip((first, last), content, strict=False):
            path.write_bytes(data)
        kept = sorted(path.read_bytes() for path in (root / "vocabulary").iterdir())
        for use in (lambda: ingest(other), lambda: read(root), lambda: read(root, 1)):
            with pytest.raises(IntegrityError, match="vocabulary") as caught:
                use()
            assert caught.value.where.endswith("atlas/vocabulary")
        assert Atlas.open(root).snapshot().version == 2
        assert sorted(path.read_bytes() for path in (root / "vocabulary").iterdir()) == kept
    first.write_bytes(one)
    last.write_bytes(two)
    assert ingest(other).changed
    Atlas.open(root).verify().check()


def test_columns_of_the_schema_are_text_whatever_the_type(tmp_path: Path) -> None:
    donors = {"a": ["D7", "7"], "b": [7, 8], "c": [7.0, np.nan], "d": [True, False], "e": pd.Categorical([7.0, 8.5])}
    truth = [[True, False], ["True", "false"], [1, 0], pd.Categorical(["FALSE", "TRUE"]), [1.0, np.nan]]
    paths = []
    for seed, (name, some) in enumerate(donors.items()):
        adata = make_adata(2, seed=seed)
        adata.obs["donor"] = some
        adata.obs["is_primary_data"] = truth[seed]
        paths.append(write(adata, tmp_path / f"{name}.h5ad"))
    ingest(config(tmp_path / "atlas", *paths, source={"obs": {"donor": "donor_id"}}))
    snapshot = Atlas.open(tmp_path / "atlas").snapshot()
    assert snapshot.columns["donor_id"] == pa.string()
    assert snapshot.columns["is_primary_data"] == pa.bool_()
    cells = snapshot.cells(["dataset", "source_row", "donor_id"]).to_pandas().sort_values("source_row")
    assert cells.groupby("dataset")["donor_id"].agg(list).to_dict() == {
        "a": ["D7", "7"],
        "b": ["7", "8"],
        "c": ["7", None],
        "d": ["True", "False"],
        "e": ["7", "8.5"],
    }
    assert snapshot.select("donor_id == '7'").n_cells == 4
    assert snapshot.select("dataset == 'a' and donor_id == 'D7' and is_primary_data").n_cells == 1
    assert snapshot.select().value_counts("is_primary_data") == {True: 5, False: 4, None: 1}
    chosen = config(tmp_path / "primary", *paths, source={"where": "is_primary_data"})
    assert sum(report.cells_out for report in ingest(chosen).reports) == 5
    adata.obs["is_primary_data"] = ["yes", "no"]
    with pytest.raises(SourceError, match=r"'is_primary_data' holds '(yes|no)', which is neither true nor false"):
        ingest(config(tmp_path / "atlas", write(adata, tmp_path / "f.h5ad")))
