"""Garbage collection: what goes, what stays, and what happens when others work meanwhile."""

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from cellmill.atlas import Atlas, Snapshot
from cellmill.atlas.collecting import Forget, collect
from cellmill.atlas.forgotten import mark
from cellmill.atlas.lease import Lease, all_leases
from cellmill.atlas.rollback import rollback
from cellmill.atlas.tags import add_tag, all_tags
from cellmill.atlas.withdrawing import remove
from cellmill.errors import AtlasError, ConflictError, LockError
from cellmill.ingestion import ingest, shards
from tests.ingestion.cells import config, counts, expected, make_adata, write

OBS = {"source": {"obs": {"donor": "donor"}}}


def later() -> float:
    return time.time() + 7200


def files(root: Path, *folders: str) -> set[str]:
    return {
        path.relative_to(root).as_posix()
        for folder in folders or ("shards", "cells", "overlays", "hashes", "staging")
        for path in (root / folder).rglob("*")
        if path.is_file()
    }


def grown(root: Path, tmp_path: Path) -> list[Any]:
    """Make an atlas of three snapshots: a data set, another beside it, the first one changed."""
    first, second = make_adata(30, seed=1), make_adata(20, seed=2)
    a, b = write(first, tmp_path / "a.h5ad"), write(second, tmp_path / "b.h5ad")
    ingest(config(root, a, **OBS))
    ingest(config(root, a, b, **OBS))
    first.X = first.X * 2
    write(first, a)
    ingest(config(root, a, b, **OBS))
    return [first, second]


def test_orphans_go_when_they_are_old_and_snapshots_stay(tmp_path: Path) -> None:
    root = tmp_path / "atlas"
    grown(root, tmp_path)
    atlas = Atlas.open(root)
    before = files(root)
    for key in ("shards/a/0.zarr/x/c/0", "cells/a/0.parquet", "overlays/a/0.parquet", "hashes/0", "staging/x/r.json",
                "catalog/0.parquet", "reports/datasets/a/0.json", "shards/a/1.zarr/zarr.json#3"):  # fmt: skip
        atlas.storage.put(key.replace("#", "_"), b"x")
        (root / key.replace("#", "_")).rename(root / key)
    young = collect(atlas)
    assert (young.files, young.young) == (0, 7)
    trial = collect(atlas, clock=later, dry_run=True)
    assert files(root) != before
    done = collect(atlas, clock=later)
    assert (done.files, done.bytes) == (trial.files, trial.bytes) == (8, 8)
    assert done.units == {
        "shards": 1,
        "overlays": 1,
        "hashes": 1,
        "staging": 1,
        "catalog": 1,
        "reports": 1,
        "drafts": 1,
    }
    assert files(root) == before
    for version in range(4):
        atlas.verify(version).check()
    assert collect(atlas, clock=later).files == 0


def test_forgotten_snapshots_lose_what_is_theirs_alone(tmp_path: Path) -> None:
    root = tmp_path / "atlas"
    adatas = grown(root, tmp_path)
    atlas = Atlas.open(root)
    add_tag(atlas, "first", 1)
    trial = collect(atlas, Forget(keep_last=1), dry_run=True)
    assert trial.forgotten == (0, 2)
    assert atlas.snapshot(2).n_cells == 50
    done = collect(atlas, Forget(keep_last=1))
    assert (done.forgotten, done.tagged) == ((0, 2), (1,))
    with pytest.raises(AtlasError, match=r"Snapshot 2 was forgotten at .* not the newest"):
        atlas.snapshot(2)
    atlas.verify(1).check()
    atlas.verify(3).check()
    atlas.storage.delete("tags/first.json")
    purged = collect(atlas, Forget(keep_last=1))
    assert purged.forgotten == (1,)
    assert purged.units["shards"] == 1
    newest = atlas.snapshot()
    assert len(list((root / "cells/a").iterdir())) == len([e for e in newest.shards if e.dataset == "a"]) == 1
    assert len(list((root / "catalog").glob("*.parquet"))) <= 2
    atlas.verify().check()
    assert counts(root).equals(expected(adatas))
    assert collect(atlas, Forget(keep_last=1)).forgotten == ()


def test_forget_before_a_date_and_the_last_few(tmp_path: Path) -> None:
    root = tmp_path / "atlas"
    grown(root, tmp_path)
    atlas = Atlas.open(root)
    assert collect(atlas, Forget(keep_last=1, before="2020-01-01"), dry_run=True).forgotten == ()
    assert collect(atlas, Forget(keep_last=3, before="2999-01-01"), dry_run=True).forgotten == (0,)


def test_nothing_of_a_withdrawn_donor_is_left_after_forgetting(tmp_path: Path) -> None:
    """The barcodes, the donor's name and the content hashes of its cells are in no byte of the atlas."""
    root = tmp_path / "atlas"
    first, second = make_adata(60, seed=1), make_adata(40, seed=2)
    for adata, name in ((first, "a"), (second, "b")):
        adata.obs["donor"] = [f"{name}{'SECRET' if i % 4 == 0 else 'open'}{i % 8}" for i in range(adata.n_obs)]
        adata.obs_names = [
            f"{'BARCODE' if 'SECRET' in donor else 'cell'}{name}{i}" for i, donor in enumerate(adata.obs["donor"])
        ]
    paths = [write(first, tmp_path / "a.h5ad"), write(second, tmp_path / "b.h5ad")]
    ingest(config(root, paths[0], shard_cells=20, **OBS))
    ingest(config(root, paths[1], shard_cells=20, **OBS))
    atlas = Atlas.open(root)
    secret = "contains(donor, 'SECRET')"
    hashes = {value.as_py() for value in atlas.snapshot().cells(["content_hash"], where=secret).column(0)}
    assert len(hashes) == 25
    assert _holding(root, hashes)
    remove(atlas, secret, "consent")
    add_tag(atlas, "before", 2)
    held = collect(atlas, Forget(), grace_s=0)
    assert held.withheld == {"1": (2,)}
    atlas.storage.delete("tags/before.json")
    done = collect(atlas, Forget(), grace_s=0)
    assert done.withheld == {}
    assert not _holding(root, hashes)
    atlas.verify().check()
    assert counts(root).equals(
        expected([adata[~adata.obs["donor"].str.contains("SECRET")] for adata in (first, second)])
    )
    # Neither the next ingestion of the same files nor of a changed one leaves anything behind.
    assert not ingest(config(root, *paths, shard_cells=20, **OBS)).changed
    second.obs["age"] += 1
    write(second, paths[1])
    assert ingest(config(root, *paths, shard_cells=20, **OBS)).changed
    written = {entry.origin for entry in atlas.snapshot().shards}
    assert "" not in written
    assert not [key for key in files(root) if any(digest in key for digest in written)]
    collect(atlas, Forget())
    assert not _holding(root, hashes)
    # Nor does one that is cut off between its shards and its commit, or while it stages, once others are forgotten.
    for obstacle in ("cellmill.ingestion.pipeline.commit", "cellmill.ingestion.pipeline._write"):
        second.obs["age"] += 1
        write(second, paths[1])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(obstacle, _killed)
            with pytest.raises(KeyboardInterrupt):
                ingest(config(root, *paths, shard_cells=20, **OBS))
        assert _holding(root, hashes)
        assert collect(atlas).young > 0
        assert _holding(root, hashes)
        with Lease(atlas.storage, "write", ["staging/", "shards/", "cells/"]):
            collect(atlas, Forget())
            assert _holding(root, hashes)
        assert collect(atlas, Forget()).young == 0
        assert not _holding(root, hashes)
    atlas.verify().check()


def _killed(*arguments: Any) -> Any:
    raise KeyboardInterrupt


def _holding(root: Path, hashes: set[bytes]) -> set[str]:
    """Return the files that hold the donor: by text, by hash as the cells have it, or as the runs of hashes have it."""
    from cellmill.atlas.cells import CellsFile

    found = set()
    turned = [h[:8][::-1] + h[8:][::-1] for h in hashes]
    for path in root.rglob("*"):
        key = path.relative_to(root).as_posix()
        if path.is_file() and not key.startswith("withdrawals/"):
            content = path.read_bytes()
            texts = [b"BARCODE", *([] if key.startswith("catalog/_delta_log") else [b"SECRET"]), *hashes, *turned]
            if any(text in content for text in texts):
                found.add(key)
    atlas = Atlas.open(root)
    for entry in atlas.snapshot().shards:
        table = CellsFile(atlas.storage, entry).read(["content_hash", "donor", "barcode"])
        if hashes & set(table.column(0).to_pylist()) or any("BARCODE" in name for name in table.column(2).to_pylist()):
            found.add(entry.cells_path)
    entries = atlas.snapshot().shards
    named = {path for entry in entries for path in (entry.cells_path, entry.hash_run_path)}
    found.update(files(root, "cells", "hashes", "staging") - named)
    shards_of = tuple(f"{entry.shard_path}/" for entry in entries)
    found.update(key for key in files(root, "shards") if not key.startswith(shards_of))
    return found


def test_a_running_ingestion_is_spared(tmp_path: Path) -> None:
    """Collect without grace in the middle of each step of an ingestion."""
    root = tmp_path / "atlas"
    first, second = make_adata(30, seed=1), make_adata(20, seed=2)
    a, b = write(first, tmp_path / "a.h5ad"), write(second, tmp_path / "b.h5ad")
    ingest(config(root, a))
    atlas = Atlas.open(root)
    write_shard = shards.write

    def slow(*arguments: Any, **named: Any) -> Any:
        assert collect(atlas, grace_s=0).leased > 0
        entry = write_shard(*arguments, **named)
        assert collect(atlas, grace_s=0).leased > 0
        return entry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "write", slow)
        ingest(config(root, b), guard=lambda: _refused(atlas))
    assert counts(root).equals(expected([first, second]))
    assert (collect(atlas, grace_s=0).files, all_leases(atlas.storage)) == (0, [])
    atlas.verify().check()


def _refused(atlas: Atlas) -> None:
    with pytest.raises(ConflictError, match="under way"):
        collect(atlas, grace_s=0, wait_s=0.2)


def test_a_commit_waits_for_a_collection(tmp_path: Path) -> None:
    """What a rerun finds of a crashed run, and the collection was about to delete, is written again."""
    root = tmp_path / "atlas"
    adata = make_adata(30, seed=1)
    a = write(adata, tmp_path / "a.h5ad")

    def crash() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest(config(root, a), guard=crash)
    atlas = Atlas.open(root)
    assert files(root, "cells")
    with Lease(atlas.storage, "collect"):
        thread = threading.Thread(target=ingest, args=(config(root, a),))
        thread.start()
        time.sleep(0.5)
        assert thread.is_alive()
        for path in (root / "cells").rglob("*.parquet"):
            path.unlink()
    thread.join()
    assert counts(root).equals(expected([adata]))
    atlas.verify().check()


def test_a_paused_process_finds_out_that_its_files_are_gone(tmp_path: Path) -> None:
    root = tmp_path / "atlas"
    adata = make_adata(30, seed=1)
    a = write(adata, tmp_path / "a.h5ad")

    def pause() -> None:
        atlas = Atlas.open(root)
        for lease in all_leases(atlas.storage):
            expired = lease.model_copy(update={"expires": 0.0})
            atlas.storage.put(lease.key, expired.model_dump_json().encode())
        assert collect(atlas, grace_s=0).units["shards"] == 1

    with pytest.raises(LockError, match="paused"):
        ingest(config(root, a), guard=pause)
    assert Atlas.open(root).snapshot().n_cells == 0
    ingest(config(root, a))
    assert counts(root).equals(expected([adata]))


def test_a_tagged_snapshot_that_holds_what_was_gone_before_its_withdrawal_is_named(tmp_path: Path) -> None:
    root = tmp_path / "atlas"
    ingest(config(root, write(make_adata(30, seed=1), tmp_path / "a.h5ad"), **OBS))
    atlas = Atlas.open(root)
    add_tag(atlas, "v1")
    ingest(config(root, write(make_adata(20, seed=2), tmp_path / "b.h5ad"), **OBS))
    atlas.commit([], [entry.key for entry in atlas.snapshot().shards if entry.dataset == "a"])
    assert remove(atlas, "dataset = 'a' and donor = 'd1'", "consent").cells == {}
    assert collect(atlas, Forget(), grace_s=0).withheld == {"1": (1,)}


def test_a_rollback_to_a_snapshot_that_is_being_forgotten(tmp_path: Path) -> None:
    """Whoever comes first wins; the snapshot is whole or the rollback is refused."""
    root = tmp_path / "atlas"
    grown(root, tmp_path)
    atlas = Atlas.open(root)
    update = atlas.update
    outcome: list[str] = []

    def slow(plan: Any) -> tuple[int, bool]:
        def planned(snapshot: Snapshot) -> Any:
            change = plan(snapshot)
            if not outcome:
                outcome.append("")
                thread = threading.Thread(target=lambda: collect(Atlas.open(root), Forget(), grace_s=0))
                thread.start()
                time.sleep(0.5)
                assert thread.is_alive()  # it waits for this commit
                threads.append(thread)
            return change

        return update(planned)

    threads: list[threading.Thread] = []
    atlas.update = slow  # type: ignore[method-assign]
    assert rollback(atlas, 2) == (4, True)
    threads[0].join()
    fresh = Atlas.open(root)
    assert fresh.snapshot().n_cells == 50
    fresh.verify().check()
    with pytest.raises(AtlasError, match="forgotten"):
        rollback(fresh, 2)


def test_a_tag_that_comes_while_its_snapshot_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "atlas"
    grown(root, tmp_path)
    atlas = Atlas.open(root)

    def slow(*arguments: Any) -> None:
        arguments = (arguments[0], list(arguments[1]))
        add_tag(atlas, "late", 2)
        mark(*arguments)

    monkeypatch.setattr("cellmill.atlas.collecting.mark", slow)
    done = collect(atlas, Forget())
    assert done.forgotten == (0, 1)
    assert [tag.version for tag in all_tags(atlas.storage)] == [2]
    atlas.verify("late").check()


def test_what_a_killed_run_left_is_collected_when_its_lease_has_expired(tmp_path: Path) -> None:
    root = tmp_path / "atlas"
    atlas = Atlas.create(root)
    lease = Lease(atlas.storage, "write", ["staging/x"])
    atlas.storage.put(lease.record.key, lease.record.model_dump_json().encode())
    atlas.storage.put("staging/x/receipts/0.json", b"{}")
    assert collect(atlas, grace_s=0).leased == 1
    done = collect(atlas, clock=later)
    assert done.units == {"staging": 1}
    assert files(root) == set()
    assert "cut off" in atlas.log()[0].message
    os.utime(next((root / "leases").glob("*.lost")), (0, 0))
    collect(atlas)
    assert files(root, "leases") == set()
