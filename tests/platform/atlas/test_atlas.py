from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from cellmill.atlas import Atlas, Change, ShardEntry, Snapshot
from cellmill.errors import AtlasError, IntegrityError
from tests.platform.atlas.builders import add_shard, random_counts, small_atlas

ROW = ShardEntry(
    dataset="d",
    digest="",
    n_cells=1,
    n_rows=1,
    n_features=1,
    nnz=1,
    max_features=1,
    bytes=1,
    checksum="",
    organism="human",
    source_url="",
    source_digest="",
    licence="",
    config_digest="",
    recipe=1,
    vocabulary_size=9,
    vocabulary_digest="",
)


def row(digest: str, **changes: object) -> ShardEntry:
    return ROW.model_copy(update={"digest": digest, **changes})


def test_a_commit_is_a_snapshot_and_old_ones_stay(tmp_path: Path) -> None:
    atlas = Atlas.create(tmp_path)
    assert (atlas.snapshot().version, atlas.snapshot().n_cells) == (0, 0)
    assert atlas.commit([row("a"), row("b")], message="first") == 1
    assert atlas.commit([row("c")], remove=[("d", "a")], message="second") == 2
    assert atlas.commit([row("b", n_cells=7)]) == 3
    found = {v: [(e.digest, e.n_cells) for e in atlas.snapshot(v).shards] for v in (0, 1, 2, 3)}
    assert found == {0: [], 1: [("a", 1), ("b", 1)], 2: [("b", 1), ("c", 1)], 3: [("b", 7), ("c", 1)]}
    assert [line.message for line in atlas.log()][1:] == ["second", "first", "created"]
    assert [line.version for line in atlas.log()] == [3, 2, 1, 0]


def test_a_commit_of_what_is_there_changes_nothing(tmp_path: Path) -> None:
    atlas = Atlas.create(tmp_path)
    atlas.commit([row("a")])
    assert atlas.commit([row("a")]) == 1
    assert atlas.commit([], remove=[("d", "gone")]) == 1


def test_many_commits_keep_every_snapshot(tmp_path: Path) -> None:
    atlas = Atlas.create(tmp_path)
    for i in range(103):  # past the first checkpoint of the log
        atlas.commit([row(f"{i:03d}")])
    assert len(atlas.snapshot(1).shards) == 1
    assert len(atlas.snapshot(57).shards) == 57
    assert len(Atlas.open(tmp_path).snapshot().shards) == 103


def test_the_loser_of_a_race_plans_again_on_what_the_winner_left(tmp_path: Path) -> None:
    atlas = Atlas.create(tmp_path)
    seen = []

    def plan(snapshot: Snapshot) -> Change:
        seen.append(snapshot.version)
        if len(seen) == 1:
            Atlas.open(tmp_path).commit([row("winner")])
        return Change([row("loser", n_cells=len(snapshot.shards))])

    assert atlas.update(plan) == (2, True)
    assert seen == [0, 1]
    assert [(e.digest, e.n_cells) for e in atlas.snapshot().shards] == [("loser", 1), ("winner", 1)]
    assert len(list((tmp_path / "catalog").glob("*.parquet"))) == 2  # the loser's file is gone


def commit_several(url: str, name: str, n: int) -> list[int]:
    atlas = Atlas.open_or_create(url)
    return [atlas.commit([row(f"{name}-{i}")]) for i in range(n)]


def test_processes_that_commit_at_once_lose_nothing(tmp_path: Path) -> None:
    with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(commit_several, str(tmp_path), f"w{i}", 4) for i in range(3)]
        versions = [version for future in futures for version in future.result()]
    assert sorted(versions) == list(range(1, 13))
    atlas = Atlas.open(tmp_path)
    assert {e.digest for e in atlas.snapshot().shards} == {f"w{w}-{i}" for w in range(3) for i in range(4)}
    for version in range(13):
        assert len(atlas.snapshot(version).shards) == version


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(AtlasError, match="no atlas"):
        Atlas.open(tmp_path / "nowhere")
    atlas = Atlas.create(tmp_path / "a")
    with pytest.raises(AtlasError, match="already"):
        Atlas.create(tmp_path / "a")
    with pytest.raises(AtlasError, match="no snapshot 5"):
        atlas.snapshot(5)
    atlas.commit([row("a")])
    next((tmp_path / "a/catalog").glob("*.parquet")).write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(IntegrityError):
        Atlas.open(tmp_path / "a").snapshot()
    (tmp_path / "a/atlas.json").write_text('{"format": 99, "id": "x", "organisms": []}')
    with pytest.raises(AtlasError, match="format 99"):
        Atlas.open(tmp_path / "a")


def test_cells_and_selections(tmp_path: Path) -> None:
    snapshot = small_atlas(tmp_path).snapshot()
    table = snapshot.cells()
    assert table.num_rows == snapshot.n_cells == 100
    assert table.column("dataset").to_pylist() == ["alpha"] * 60 + ["beta"] * 40
    assert table.column("fresh").to_pylist()[:60] == [None] * 60
    assert len(set(table.column("cell_id").to_pylist())) == 100
    assert not any(table.column("is_duplicate").to_pylist())
    everything = snapshot.select()
    assert [everything.rows(i) for i in range(2)] == [None, None]
    assert everything.counts.tolist() == [60, 40]

    some = snapshot.select("donor in ['d1', 'd3'] and age is null or age >= 57")
    frame = table.to_pandas()
    wanted = frame[(frame.donor.isin(["d1", "d3"]) & frame.age.isna()) | (frame.age >= 57)]
    assert some.n_cells == len(wanted) == 43
    assert some.cells(["cell_id"]).column(0).to_pylist() == wanted.cell_id.tolist()
    assert some.rows(0) is not None
    assert some.rows(1) is None
    assert [values.tolist() for values in some.column("donor")] == [["d1", "d2", None], ["d3"] * 40]
    assert [codes.tolist() for codes in some.codes("donor", ["d3", "d2"])] == [[-1, 1, -1], [0] * 40]
    assert some.head(["cell_id"], 41).column(0).to_pylist() == wanted.cell_id.tolist()[:41]
    assert some.head(["cell_id"], 500).num_rows == 43
    assert some.head(["donor", "age"], 0).num_rows == 0
    assert some.value_counts("donor") == frame.donor[wanted.index].value_counts(dropna=False).to_dict()
    assert snapshot.select().value_counts("dataset") == {"alpha": 60, "beta": 40}
    assert snapshot.select().value_counts("fresh") == {None: 60, True: 20, False: 20}
    nothing = snapshot.select("donor == 'nobody'")
    assert nothing.head(["donor"], 5).num_rows == 0
    assert (nothing.n_cells, nothing.shards, nothing.cells(["donor"]).num_rows) == (0, (), 0)


def test_columns_of_different_types_become_text(tmp_path: Path) -> None:
    atlas = Atlas.create(tmp_path)
    entries = [
        add_shard(atlas, "a", random_counts(2, 5), obs={"age": [1, 2], "mixed": [1, 2]}),
        add_shard(atlas, "b", random_counts(2, 5), obs={"age": [1.5, None], "mixed": ["x", None]}),
    ]
    atlas.commit(entries)
    cells = atlas.snapshot().cells(["age", "mixed"]).to_pydict()
    assert cells == {"age": [1.0, 2.0, 1.5, None], "mixed": ["1", "2", "x", None]}


def test_lineage_leads_to_the_files(tmp_path: Path) -> None:
    snapshot = small_atlas(tmp_path).snapshot()
    lineage = snapshot.lineage(snapshot.select("donor = 'd3'"))
    assert (lineage.digest, lineage.facts["cells"], lineage.facts["where"]) == (snapshot.name, 40, "donor = 'd3'")
    assert [source.location for source in lineage.sources()] == ["/data/beta.h5ad"]
    assert [source.digest for source in snapshot.lineage().sources()] == [e.source_digest for e in snapshot.shards]
    assert {parent.facts["licence"] for parent in snapshot.lineage().parents} == {"MIT", "CC0"}
    assert np.sum([parent.facts["cells"] for parent in snapshot.lineage().parents]) == 100


def test_what_the_catalog_tells_needs_no_metadata(tmp_path: Path) -> None:
    snapshot = small_atlas(tmp_path).snapshot()
    columns = dict(snapshot.columns)
    for path in (tmp_path / "cells").rglob("*.parquet"):
        path.unlink()
    fresh = Atlas.open(tmp_path).snapshot()
    assert fresh.columns == columns
    assert fresh.select("dataset = 'beta' and donor = 'd3'").value_counts("donor") == {"d3": 40}
    assert fresh.select("age < 0 or n_genes < 0").n_cells == 0
    with pytest.raises(IntegrityError):
        fresh.select("age < 3")


def test_what_the_catalog_knows_can_be_asked_for(tmp_path: Path) -> None:
    atlas = small_atlas(tmp_path)
    unknown = add_shard(atlas, "gamma", random_counts(7, 30, seed=5), licence="")
    atlas.commit([unknown])
    snapshot = atlas.snapshot()
    counts = {
        "licence in ['MIT', 'CC-BY-4.0']": 60,
        "licence = 'CC0' and donor = 'd3'": 40,
        "licence is null": 7,
        "licence != 'MIT'": 40,
        "not licence in ['MIT']": 40,
        "organism = 'mouse'": 0,
        "source_url = '/data/alpha.h5ad' and age < 10": 10,
    }
    assert {where: snapshot.select(where).n_cells for where in counts} == counts
    assert snapshot.cells(["licence"]).column(0).to_pylist() == ["MIT"] * 60 + ["CC0"] * 40 + [None] * 7
    for entry in snapshot.shards:  # the catalog alone is enough
        (tmp_path / entry.cells_path).unlink()
    assert Atlas.open(tmp_path).snapshot().select("licence in ['MIT']").n_cells == 60
