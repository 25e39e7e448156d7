"""Cells that are withdrawn stay away: from the snapshot, from later ingestions, and from a rollback."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cellmill.atlas import Atlas, Snapshot
from cellmill.atlas.cell_keys import shard_keys
from cellmill.atlas.collecting import Forget, collect
from cellmill.atlas.lease import Lease
from cellmill.atlas.purging import purge
from cellmill.atlas.rollback import rollback
from cellmill.atlas.withdrawals import all_withdrawals, lift
from cellmill.atlas.withdrawing import remove
from cellmill.errors import AtlasError, ConfigError, ConflictError
from cellmill.ingestion import ingest
from cellmill.ingestion.pipeline import plan as plan_ingestion
from tests.ingestion.cells import config, counts, expected, make_adata, write

D1 = "donor = 'd1'"
OBS = {"source": {"obs": {"donor": "donor"}}}


def without(adata: Any, donor: str = "d1") -> Any:
    return adata[adata.obs["donor"] != donor]


def same(atlas: Path, adatas: list[Any]) -> None:
    assert counts(atlas).equals(expected(adatas))


def test_a_withdrawn_donor_is_gone_and_stays_gone(tmp_path: Path) -> None:
    first, second = make_adata(60, seed=1), make_adata(30, seed=2)
    a, b = write(first, tmp_path / "a.h5ad"), write(second, tmp_path / "b.h5ad")
    root = tmp_path / "atlas"
    settings = config(root, a, b, shard_cells=25, **OBS)
    ingest(settings)
    atlas = Atlas.open(root)
    trial = remove(atlas, D1, "consent", dry_run=True)
    assert (trial.number, trial.cells, atlas.snapshot().version) == (0, {"a": 20, "b": 10}, 1)
    done = remove(atlas, D1, "consent")
    assert (done.number, done.snapshot, done.cells, done.dropped) == (1, 2, {"a": 20, "b": 10}, 0)
    same(root, [without(first), without(second)])
    atlas.verify().check()
    assert atlas.snapshot(1).select(D1).n_cells == 30

    assert not ingest(settings).changed  # the same files: nothing is even read
    first.obs["age"] += 1
    write(first, a)
    again = ingest(settings)
    assert again.changed
    assert again.reports[0].dropped == {"withdrawn (withdrawal 1)": 20}
    assert again.reports[0].cells_out == 40
    same(root, [without(first), without(second)])
    assert not ingest(settings).changed
    atlas.verify().check()


def test_what_is_hidden_behind_a_withdrawn_cell_is_shown_again(tmp_path: Path) -> None:
    first, second = make_adata(30, seed=1), make_adata(30, seed=1)
    second.obs["donor"] = "other"
    a, b = write(first, tmp_path / "a.h5ad"), write(second, tmp_path / "b.h5ad")
    root = tmp_path / "atlas"
    ingest(config(root, a, b, **OBS))
    assert Atlas.open(root).snapshot().n_cells == 30
    done = remove(Atlas.open(root), D1, "consent")
    assert done.shown_again == 10
    same(root, [first])  # the same counts, ten of them by the other donor
    assert Atlas.open(root).snapshot().select("dataset = 'b' and donor = 'other'").n_cells == 10
    Atlas.open(root).verify().check()


def test_a_data_set_that_is_withdrawn_whole_is_not_read_again(tmp_path: Path) -> None:
    adata = make_adata(30, seed=1)
    settings = config(tmp_path / "atlas", write(adata, tmp_path / "a.h5ad"), shard_cells=10, **OBS)
    ingest(settings)
    atlas = Atlas.open(tmp_path / "atlas")
    assert remove(atlas, "dataset = 'a'", "licence").dropped == 3
    assert atlas.snapshot().n_cells == 0
    result = ingest(settings)
    assert (result.changed, len(result.unchanged)) == (False, 1)
    lift(atlas.storage, 1, "a mistake")
    assert ingest(settings).changed
    same(tmp_path / "atlas", [adata])


def test_a_rollback_does_not_bring_back_the_hashes_of_withdrawn_cells(tmp_path: Path) -> None:
    """The old rows name one run of all; some of their shards hide other cells now."""
    root, names = tmp_path / "atlas", "abcd"
    adatas = [make_adata(12, seed=seed) for seed in (1, 2, 3, 2)]  # all of d is hidden behind b
    adatas[3].obs["age"] += 1
    paths = [write(adata, tmp_path / f"{name}.h5ad") for name, adata in zip(names, adatas, strict=True)]
    for path in paths:
        ingest(config(root, path, **OBS))
    atlas = Atlas.open(root)
    first, *others = atlas.snapshot().shards
    assert {entry.hash_run for entry in others} == {first.hash_run}
    keys, table = shard_keys(atlas.storage, first, "donor")
    donors = table.column("donor").to_pylist()
    hashes = [key[:2].astype("<u8").tobytes() for key, donor in zip(keys, donors, strict=True) if donor == "d1"]
    atlas.commit([], [first.key])
    adatas[1].X = adatas[1].X * 2
    write(adatas[1], paths[1])
    ingest(config(root, paths[1], **OBS))
    remove(atlas, "dataset = 'a' and donor = 'd1'", "consent")
    assert rollback(atlas, 5) == (8, True)
    assert rollback(atlas, 5) == (8, False)

    def stored(cell: bytes) -> bool:
        return any(cell in path.read_bytes() for path in (root / "hashes").iterdir())

    assert len(hashes) == 4
    assert all(stored(cell) for cell in hashes)
    collect(atlas, Forget(), grace_s=0)
    assert not any(stored(cell) for cell in hashes)
    atlas.verify().check()
    same(root, [make_adata(12, seed=2), adatas[2]])
    adatas[2].obs["age"] += 1
    assert ingest(config(root, write(adatas[2], tmp_path / "e.h5ad"), **OBS)).reports[0].cells_out == 0


def test_a_lifted_withdrawal_lets_cells_back(tmp_path: Path) -> None:
    adata = make_adata(30, seed=1)
    settings = config(tmp_path / "atlas", write(adata, tmp_path / "a.h5ad"), **OBS)
    ingest(settings)
    atlas = Atlas.open(tmp_path / "atlas")
    remove(atlas, D1, "consent")
    remove(atlas, "source_row = 0", "quality")
    with pytest.raises(AtlasError, match="withdrawn since"):
        rollback(atlas, 1)
    lift(atlas.storage, 1, "consent given again")
    assert ingest(settings).changed
    same(tmp_path / "atlas", [adata[1:]])
    assert [(w.number, found is not None) for w, found in all_withdrawals(atlas.storage)] == [(1, True), (2, False)]
    with pytest.raises(AtlasError, match="lifted already"):
        lift(atlas.storage, 1, "")
    lift(atlas.storage, 2, "")
    rollback(atlas, 1)
    same(tmp_path / "atlas", [adata])


@pytest.mark.parametrize("first", ["ingest", "remove"])
def test_no_interleaving_leaves_withdrawn_cells_visible(tmp_path: Path, first: str) -> None:
    """The other one runs to its end while the first has planned its commit but not made it."""
    adata, other = make_adata(30, seed=1), make_adata(20, seed=2)
    root = tmp_path / "atlas"
    ingest(config(root, write(adata, tmp_path / "a.h5ad"), **OBS))
    later = config(root, write(other, tmp_path / "b.h5ad"), **OBS)
    done = threading.Event()

    def withdraw() -> None:
        if not done.is_set():
            done.set()
            remove(Atlas.open(root), D1, "consent")

    if first == "ingest":
        ingest(later, guard=withdraw)
    else:
        atlas = Atlas.open(root)
        update = atlas.update

        def slow(plan: Any) -> tuple[int, bool]:
            def planned(snapshot: Snapshot) -> Any:
                change = plan(snapshot)
                if not done.is_set():
                    done.set()
                    ingest(later)
                return change

            return update(planned)

        atlas.update = slow  # type: ignore[method-assign]
        remove(atlas, D1, "consent")
    assert Atlas.open(root).snapshot().select(D1).n_cells == 0
    same(root, [without(adata), without(other)])
    Atlas.open(root).verify().check()


def test_a_withdrawal_holds_where_the_column_is_of_another_kind_or_missing(tmp_path: Path) -> None:
    first, second, third = make_adata(12, seed=1), make_adata(12, seed=2), make_adata(12, seed=3)
    first.obs["donor"] = "7"
    second.obs["donor"] = np.repeat([7, 8, 9], 4)
    del third.obs["donor"]
    root = tmp_path / "atlas"
    ingest(config(root, write(first, tmp_path / "a.h5ad"), **OBS))
    atlas = Atlas.open(root)
    with pytest.raises(ConfigError, match="no column 'donr'"):
        remove(atlas, "donr = '7'", "")
    with pytest.raises(ConfigError, match="what they are"):
        remove(atlas, "row = 7", "")
    remove(atlas, "donor = '7'", "consent")
    result = ingest(config(root, write(second, tmp_path / "b.h5ad"), **OBS))
    assert result.reports[0].cells_out == 8
    ingest(config(root, write(third, tmp_path / "c.h5ad")))
    same(root, [second[4:], third])


def test_a_plan_knows_what_is_there(tmp_path: Path) -> None:
    adata = make_adata(12, seed=1)
    settings = config(tmp_path / "atlas", write(adata, tmp_path / "a.h5ad"), **OBS)
    ingest(settings)
    remove(Atlas.open(tmp_path / "atlas"), D1, "consent")
    (entry,) = Atlas.open(tmp_path / "atlas").snapshot().shards
    (planned,) = plan_ingestion(settings)
    assert entry.planned == ("a", planned.shard_digest(0))
    assert entry.digest != entry.origin


def test_cells_can_be_withdrawn_while_the_newest_snapshot_has_none_of_them(tmp_path: Path) -> None:
    adata = make_adata(30, seed=1)
    settings = config(tmp_path / "atlas", write(adata, tmp_path / "a.h5ad"), **OBS)
    ingest(settings)
    atlas = Atlas.open(tmp_path / "atlas")
    rollback(atlas, 0)
    with pytest.raises(ConfigError, match="no column 'donr'"):
        remove(atlas, "donr = 'd1'", "")
    assert remove(atlas, D1, "consent").number == 1
    ingest(settings)
    same(tmp_path / "atlas", [without(adata)])
    with pytest.raises(AtlasError, match="withdrawn since"):
        rollback(atlas, 1)


def test_withdrawn_cells_stay_away_when_other_columns_are_kept(tmp_path: Path) -> None:
    first, second = make_adata(30, seed=1), make_adata(20, seed=2)
    a, b = write(first, tmp_path / "a.h5ad"), write(second, tmp_path / "b.h5ad")
    root = tmp_path / "atlas"
    ingest(config(root, a, **OBS))
    (before,) = plan_ingestion(config(root, a))
    remove(Atlas.open(root), D1, "consent")
    (kept,) = plan_ingestion(config(root, a, **OBS))
    assert kept.columns == {"donor": "donor"}
    assert not ingest(config(root, a, **OBS)).changed
    # Under no name, under another name, and in a data set that comes later: the column is kept as it was.
    for obs in ({}, {"donor": "patient"}):
        assert ingest(config(root, a, b, source={"obs": obs})).changed
        same(root, [without(first), without(second)])
        assert Atlas.open(root).snapshot().select("donor is None").n_cells == 0
        assert not ingest(config(root, a, b, source={"obs": obs})).changed
    lift(Atlas.open(root).storage, 1, "consent given again")
    (after,) = plan_ingestion(config(root, a))
    assert (after.digest, after.columns) == (before.digest, {})
    assert ingest(config(root, a, b)).changed
    same(root, [first, second])
    Atlas.open(root).verify().check()


@pytest.mark.parametrize("other", ["columns", "content", "name"])
def test_a_source_whose_withdrawn_cells_cannot_be_told_is_refused(tmp_path: Path, other: str) -> None:
    adata = make_adata(30, seed=1)
    a = write(adata, tmp_path / "a.h5ad")
    root = tmp_path / "atlas"
    ingest(config(root, a, source={"obs": {"donor": "patient"}}))
    remove(Atlas.open(root), "patient = 'd1'", "consent")
    settings = config(root, a)
    if other == "content":
        del adata.obs["donor"]
        write(adata, a)
    if other == "name":
        rollback(Atlas.open(root), 0)
        settings = config(root, a, source={"dataset": "b"})
    version = Atlas.open(root).snapshot().version
    with pytest.raises(ConfigError, match=r"'patient' \(withdrawal 1: patient = 'd1'\)") as error:
        ingest(settings)
    assert "--lift 1" in str(error.value)
    assert Atlas.open(root).snapshot().version == version
    ingest(config(root, write(make_adata(10, seed=2), tmp_path / "c.h5ad")))  # it never had such cells
    lift(Atlas.open(root).storage, 1, "consent given again")
    assert ingest(settings).changed
    assert Atlas.open(root).snapshot().n_cells == 40


@pytest.mark.parametrize("name", ["donor", "patient"])
def test_a_withdrawal_that_comes_after_the_plan_is_not_missed(tmp_path: Path, name: str) -> None:
    adata = make_adata(30, seed=1)
    a = write(adata, tmp_path / "a.h5ad")
    root = tmp_path / "atlas"
    ingest(config(root, a, source={"obs": {"donor": name}}))
    done = threading.Event()

    def withdraw() -> None:
        if not done.is_set():
            done.set()
            remove(Atlas.open(root), f"{name} = 'd1'", "consent")

    with pytest.raises(ConflictError if name == "donor" else ConfigError, match="withdrawal 1"):
        ingest(config(root, a), guard=withdraw)
    same(root, [without(adata)])


def test_what_another_ingestion_may_commit_is_left_for_the_garbage_collection(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, adata = tmp_path / "atlas", make_adata(30, seed=1)
    settings = config(root, write(adata, tmp_path / "a.h5ad"), **OBS)
    ingest(settings)
    atlas = Atlas.open(root)
    remove(atlas, D1, "consent")
    adata.obs["age"] += 1
    write(adata, tmp_path / "a.h5ad")
    with Lease(atlas.storage, "write", ["cells/a/"]):
        ingest(settings)
    (entry,) = atlas.snapshot().shards
    assert "left for `cellmill atlas gc" in capsys.readouterr().err
    assert (root / f"cells/a/{entry.origin}.parquet").exists()
    assert purge(atlas, [entry.planned, entry.key]) == 0
    assert not (root / f"cells/a/{entry.origin}.parquet").exists()
    atlas.verify().check()
    atlas.verify(1).check()


def test_withdrawn_cells_of_a_file_do_not_come_back_under_the_name_of_another_data_set(tmp_path: Path) -> None:
    root, adata = tmp_path / "atlas", make_adata(30, seed=1)
    path = write(adata, tmp_path / "a.h5ad")
    ingest(config(root, path, **OBS))
    atlas = Atlas.open(root)
    remove(atlas, "dataset = 'a' and donor = 'd1'", "consent")
    atlas.commit(remove=[entry.key for entry in atlas.snapshot().shards])
    other = path.rename(tmp_path / "b.h5ad")
    with pytest.raises(ConfigError, match="withdrawn under the name of another data set"):
        ingest(config(root, other, **OBS))
    back = other.rename(path)
    ingest(config(root, back, **OBS))
    same(root, [without(adata)])
