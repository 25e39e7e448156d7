"""Ticks by a clock that is turned by hand: only what is new, changed or gone is touched."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from cellmill.atlas import Atlas
from cellmill.atlas.compacting import compact
from cellmill.atlas.withdrawals import lift
from cellmill.atlas.withdrawing import remove
from cellmill.ingestion import SourceConfig, commit
from cellmill.ingestion.duplicates import find_duplicates
from cellmill.ingestion.schedule.report import TickReport
from cellmill.ingestion.sources import Place, registry
from cellmill.lock import acquire
from cellmill.storage import Storage
from tests.ingestion.cells import counts, expected, make_adata, write
from tests.ingestion.schedule.clockwork import DAY, FakeClock, schedule, scheduler

pytestmark = pytest.mark.usefixtures("without_plots")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of the sources that are opened."""
    found: list[str] = []
    original = registry.resolve

    def noting(place: Place, config: SourceConfig) -> Any:
        found.append(Path(place.name).stem)
        return original(place, config)

    monkeypatch.setattr(registry, "resolve", noting)
    return found


def log(atlas: Path) -> list[dict[str, Any]]:
    lines = (atlas / "schedule/nightly/log-2026-03.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def names(report: TickReport, what: str) -> set[str]:
    return {Path(getattr(item, "source", item)).stem for item in getattr(report, what)}


def test_five_ticks(tmp_path: Path, opened: list[str]) -> None:
    data, atlas, clock = tmp_path / "data", tmp_path / "atlas", FakeClock()
    data.mkdir()
    first, second, third = (make_adata(20, seed=seed, start=5 * seed) for seed in (1, 2, 3))
    write(first, data / "a.h5ad")
    write(second, data / "b.h5ad")
    config = schedule(atlas, data / "*.h5ad", vanished={"policy": "remove"})

    # One: all are new.
    one = scheduler(config, clock).once()
    assert (names(one, "landed"), one.snapshot, one.outcome) == ({"a", "b"}, 2, "changed")
    assert sorted(opened) == ["a", "b"]
    pd.testing.assert_frame_equal(counts(atlas), expected([first, second]))

    # Two: a new one, and a corrupt one that does not keep it from landing; the others are not opened.
    clock.time += DAY
    write(third, data / "c.h5ad")
    (data / "bad.h5ad").write_bytes((data / "a.h5ad").read_bytes()[:3000])
    opened.clear()
    two = scheduler(config, clock).once()
    assert (names(two, "landed"), names(two, "failed"), two.unchanged, two.snapshot) == ({"c"}, {"bad"}, 2, 3)
    assert set(opened) == {"bad", "c"}
    assert two.failed[0].error["kind"] == "source"
    assert not two.is_well

    # Three: one has changed, one has only been touched; the corrupt one waits, then fails again.
    clock.time += DAY
    changed = make_adata(25, seed=7)
    write(changed, data / "a.h5ad")
    (data / "b.h5ad").touch()
    opened.clear()
    three = scheduler(config, clock).once()
    assert names(three, "landed") == {"a", "b"}
    assert {landing.dataset for landing in three.landed if landing.committed} == {"a"}
    assert (names(three, "failed"), three.failed[0].failures, three.snapshot) == ({"bad"}, 2, 4)
    pd.testing.assert_frame_equal(counts(atlas), expected([changed, second, third]))

    # Four: one has vanished and is taken out; the corrupt one was mended.
    clock.time += DAY
    (data / "c.h5ad").unlink()
    mended = make_adata(15, seed=9)
    write(mended, data / "bad.h5ad")
    opened.clear()
    four = scheduler(config, clock).once()
    assert (names(four, "landed"), names(four, "vanished"), names(four, "removed")) == ({"bad"}, {"c"}, {"c"})
    assert (set(opened), four.snapshot, four.is_well) == ({"bad"}, 6, True)
    pd.testing.assert_frame_equal(counts(atlas), expected([changed, second, mended]))

    # Five: nothing is to be done, nothing is opened, nothing is written but the status.
    clock.time += DAY
    opened.clear()
    states = sorted(path.name for path in (atlas / "schedule/nightly/state").iterdir())
    five = scheduler(config, clock).once()
    assert (five.outcome, five.unchanged, five.snapshot, opened) == ("unchanged", 3, 6, [])
    assert sorted(path.name for path in (atlas / "schedule/nightly/state").iterdir()) == states
    assert Atlas.open(atlas).verify().sound

    status = json.loads((atlas / "schedule/nightly/status.json").read_text())
    assert [tick["outcome"] for tick in status["history"]] == ["unchanged", "changed", "changed", "changed", "changed"]
    assert {Path(line["source"]).stem: line["state"] for line in status["sources"]} == dict.fromkeys(
        ("a", "b", "bad"), "landed"
    )
    page = (atlas / "schedule/nightly/status.html").read_text()
    assert 'http-equiv="refresh"' in page
    assert "bad.h5ad" in page
    assert [line["event"] for line in log(atlas)].count("failed") == 2


def test_a_source_that_fails_is_tried_again_after_ever_longer_pauses(tmp_path: Path, opened: list[str]) -> None:
    (tmp_path / "bad.h5ad").write_bytes(b"no h5ad")
    clock = FakeClock()
    retries = {"first_s": 100, "longest_s": 300, "jitter": 0}
    config = schedule(tmp_path / "atlas", tmp_path / "*.h5ad", retries=retries)
    waits = []
    for _ in range(4):
        report = scheduler(config, clock).once()
        (trouble,) = report.failed
        assert trouble.retry_after is not None
        waits.append((trouble.retry_after - clock.time).total_seconds())
        clock.time = trouble.retry_after - timedelta(seconds=1)
        opened.clear()
        waiting = scheduler(config, clock).once()
        assert (waiting.waiting, waiting.failed, waiting.is_well, opened) == (1, (), True, [])
        clock.time = trouble.retry_after
    assert waits == [100, 200, 300, 300]
    # A file that is mended does not wait.
    scheduler(config, clock).once()
    write(make_adata(10), tmp_path / "bad.h5ad")
    assert names(scheduler(config, clock).once(), "landed") == {"bad"}


def test_other_settings_touch_a_source_again(tmp_path: Path) -> None:
    path, atlas, clock = write(make_adata(30), tmp_path / "a.h5ad"), tmp_path / "atlas", FakeClock()
    scheduler(schedule(atlas, path), clock).once()
    assert scheduler(schedule(atlas, path), clock).once().unchanged == 1
    stricter = schedule(atlas, path, ingest={"quality": {"min_genes": 17}})
    report = scheduler(stricter, clock).once()
    assert [landing.committed for landing in report.landed] == [True]
    assert 0 < Atlas.open(atlas).snapshot().n_cells < 30
    # What does not change the result does not count.
    assert (
        scheduler(
            schedule(atlas, path, ingest={**stricter.ingest.model_dump(include={"quality"}), "task_memory_mb": 512}),
            clock,
        )
        .once()
        .unchanged
        == 1
    )


@pytest.mark.parametrize("policy", ["keep", "remove"])
def test_a_pattern_that_finds_nothing_is_an_error_and_nothing_vanishes(tmp_path: Path, policy: str) -> None:
    data, atlas, clock = tmp_path / "data", tmp_path / "atlas", FakeClock()
    data.mkdir()
    write(make_adata(10, seed=1), data / "a.h5ad")
    other = write(make_adata(10, seed=2), tmp_path / "other.h5ad")
    config = schedule(atlas, data / "*.h5ad", other, vanished={"policy": policy, "most": 1})
    scheduler(config, clock).once()
    data.rename(tmp_path / "unmounted")
    report = scheduler(config, clock).once()
    assert (report.vanished, report.removed, names(report, "failed")) == ((), (), {"*"})
    assert "No file has such a name" in report.failed[0].error["what"]
    assert Atlas.open(atlas).snapshot().n_cells == 20
    (tmp_path / "unmounted").rename(data)
    assert scheduler(config, clock).once().unchanged == 2


def test_vanished_sources_stay_unless_they_shall_go(tmp_path: Path, opened: list[str]) -> None:
    atlas, clock = tmp_path / "atlas", FakeClock()
    paths = [write(make_adata(10, seed=seed), tmp_path / f"{seed}.h5ad") for seed in range(4)]
    keep = schedule(atlas, *paths)
    scheduler(keep, clock).once()
    for path in paths[1:]:
        path.rename(path.with_suffix(".away"))
    report = scheduler(keep, clock).once()
    assert (len(report.vanished), report.outcome, report.is_well) == (3, "unchanged", True)

    guarded = schedule(atlas, *paths, vanished={"policy": "remove"})
    refused = scheduler(guarded, clock).once()
    assert "3 of 4 sources have vanished" in refused.failed[0].error["what"]
    assert Atlas.open(atlas).snapshot().n_cells == 40

    paths[1].with_suffix(".away").rename(paths[1])
    opened.clear()
    removed = scheduler(guarded, clock).once()
    assert (len(removed.removed), removed.unchanged, removed.outcome, opened) == (2, 2, "changed", [])
    assert {entry.dataset for entry in Atlas.open(atlas).snapshot().shards} == {"0", "1"}

    for path in paths[2:]:
        path.with_suffix(".away").rename(path)
    assert names(scheduler(guarded, clock).once(), "landed") == {"2", "3"}
    assert Atlas.open(atlas).snapshot().n_cells == 40


def test_cells_hidden_as_duplicates_of_a_source_that_goes_come_back(tmp_path: Path) -> None:
    atlas, clock = tmp_path / "atlas", FakeClock()
    first, other = make_adata(10, seed=1), make_adata(5, seed=4)
    again = first.copy()
    again.obs["more"] = 1
    paths = [write(adata, tmp_path / f"{name}.h5ad") for name, adata in zip("abc", (first, again, other), strict=True)]
    duplicates = {"duplicates": {"min_genes": 1}, "shard_cells": 4}
    config = schedule(atlas, *paths, vanished={"policy": "remove"}, ingest=duplicates)
    scheduler(config, clock).once()
    assert Atlas.open(atlas).snapshot().select("dataset = 'b'").n_cells == 0
    paths[0].unlink()
    scheduler(config, clock).once()
    assert Atlas.open(atlas).snapshot().select("dataset = 'b'").n_cells == 10
    assert Atlas.open(atlas).verify().sound


def test_what_somebody_took_out_of_the_atlas_stays_out_unless_it_shall_land(tmp_path: Path) -> None:
    atlas, clock = tmp_path / "atlas", FakeClock()
    path = write(make_adata(10), tmp_path / "a.h5ad")
    scheduler(schedule(atlas, path), clock).once()
    opened = Atlas.open(atlas)
    opened.commit(remove=[entry.key for entry in opened.snapshot().shards], message="by hand")
    report = scheduler(schedule(atlas, path), clock).once()
    assert (names(report, "withdrawn"), report.outcome) == ({"a"}, "unchanged")
    again = scheduler(schedule(atlas, path, withdrawn="land"), clock).once()
    assert [landing.committed for landing in again.landed] == [True]
    assert opened.snapshot().n_cells == 10


def test_a_tick_that_finds_the_lock_taken_is_skipped_and_logged(tmp_path: Path) -> None:
    atlas, clock = tmp_path / "atlas", FakeClock()
    config = schedule(atlas, write(make_adata(10), tmp_path / "a.h5ad"))
    lock = acquire(Storage.open(atlas), "schedule-nightly", ttl_s=120, clock=lambda: clock.time.timestamp())
    assert lock is not None
    skipped = scheduler(config, clock).once()
    assert (skipped.outcome, skipped.is_well) == ("skipped", True)
    assert not (atlas / "atlas.json").exists()
    (line,) = log(atlas)
    assert line["event"] == "skipped"
    assert "holds the lock" in line["text"]
    clock.time += timedelta(seconds=121)
    assert scheduler(config, clock).once().outcome == "changed"
    assert lock.number == 1


def test_a_holder_whose_lock_was_taken_commits_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    atlas, clock = tmp_path / "atlas", FakeClock()
    config = schedule(atlas, write(make_adata(10), tmp_path / "a.h5ad"))
    original = find_duplicates
    results = []

    def paused(*arguments: Any, **more: Any) -> Any:
        # Right before its commit the process sleeps for longer than its lock lives, and another does its work.
        monkeypatch.setattr(commit, "find_duplicates", original)
        clock.time += timedelta(seconds=500)
        results.append(scheduler(config, clock).once())
        return original(*arguments, **more)

    monkeypatch.setattr(commit, "find_duplicates", paused)
    late = scheduler(config, clock).once()
    assert (late.outcome, results[0].outcome) == ("failed", "changed")
    assert "lock was lost" in late.detail
    assert Atlas.open(atlas).snapshot().version == 1
    assert scheduler(config, clock).once().unchanged == 1


def test_ticks_over_compacted_shards_touch_only_what_changed(tmp_path: Path, opened: list[str]) -> None:
    data, atlas, clock = tmp_path / "data", tmp_path / "atlas", FakeClock()
    data.mkdir()
    adatas = {name: make_adata(20, seed=seed, start=5 * seed) for seed, name in enumerate("abc")}
    for name, adata in adatas.items():
        write(adata, data / f"{name}.h5ad")
    config = schedule(atlas, data / "*.h5ad", vanished={"policy": "remove"})
    scheduler(config, clock).once()
    compact(Atlas.open(atlas), shard_cells=15)
    opened.clear()
    clock.time += DAY
    assert (scheduler(config, clock).once().unchanged, opened) == (3, [])

    clock.time += DAY
    (data / "a.h5ad").unlink()
    adatas["b"] = make_adata(25, seed=9)
    write(adatas["b"], data / "b.h5ad")
    report = scheduler(config, clock).once()
    assert (names(report, "landed"), report.unchanged, set(opened)) == ({"b"}, 1, {"b"})
    pd.testing.assert_frame_equal(counts(atlas), expected([adatas["b"], adatas["c"]]))
    Atlas.open(atlas).verify().check()
    clock.time += DAY
    assert scheduler(config, clock).once().unchanged == 2


def test_a_dry_run_says_what_a_tick_would_do_and_writes_nothing(tmp_path: Path) -> None:
    atlas, clock = tmp_path / "atlas", FakeClock()
    paths = [write(make_adata(10, seed=seed), tmp_path / f"{seed}.h5ad") for seed in range(2)]
    assert [one.kind for one in scheduler(schedule(atlas, *paths), clock).dry_run()] == ["new", "new"]
    assert not atlas.exists()
    scheduler(schedule(atlas, *paths), clock).once()
    before = sorted(path for path in atlas.rglob("*"))
    write(make_adata(11), paths[0])
    paths[1].unlink()
    assert {one.key[-6]: one.kind for one in scheduler(schedule(atlas, *paths), clock).dry_run()} == {
        "0": "changed",
        "1": "vanished",
    }
    assert sorted(path for path in atlas.rglob("*")) == before


def test_what_is_still_being_written_is_left_to_a_later_tick(tmp_path: Path, opened: list[str]) -> None:
    done = write(make_adata(10, seed=1), tmp_path / "done.h5ad")
    growing = write(make_adata(10, seed=2), tmp_path / "growing.h5ad")
    config = schedule(tmp_path / "atlas", done, growing, settle_s=20)

    class Writing(FakeClock):
        def sleep_until(self, moment: Any) -> None:
            with growing.open("ab") as file:
                file.write(b"more")
            super().sleep_until(moment)

    clock = Writing()
    report = scheduler(config, clock).once()
    assert (names(report, "landed"), names(report, "settling"), opened) == ({"done"}, {"growing"}, ["done"])
    assert report.retry is not None
    assert (clock.slept[0] - report.started).total_seconds() == 20
    assert names(scheduler(config, FakeClock()).once(), "landed") == {"growing"}


def test_cells_that_are_withdrawn_come_back_when_the_withdrawal_is_lifted(tmp_path: Path, opened: list[str]) -> None:
    root, clock = tmp_path / "atlas", FakeClock()
    part, whole = make_adata(30, seed=1), make_adata(9, seed=2)
    whole.obs["donor"] = "d1"
    paths = [write(adata, tmp_path / f"{name}.h5ad") for name, adata in (("part", part), ("whole", whole))]
    sources = [{"path": str(path), "organism": "human", "obs": {"donor": "donor"}} for path in paths]
    config = schedule(root, ingest={"sources": sources})
    scheduler(config, clock).once()
    atlas = Atlas.open(root)
    remove(atlas, "donor = 'd1'", "consent")
    opened.clear()
    after = scheduler(config, clock).once()
    assert (after.outcome, after.unchanged, names(after, "withdrawn"), opened) == ("unchanged", 1, {"whole"}, [])
    assert atlas.snapshot().n_cells == 20

    # Nothing brings them back while it holds, also where the whole of a source is withdrawn.
    whole.obs["age"] += 1
    write(whole, paths[1])
    assert [landing.cells for landing in scheduler(config, clock).once().landed] == [0]
    assert atlas.snapshot().n_cells == 20

    lift(atlas.storage, 1, "consent again")
    back = scheduler(config, clock).once()
    assert names(back, "landed") == {"part", "whole"}
    assert atlas.snapshot().n_cells == 39
    assert scheduler(config, clock).once().unchanged == 2


def test_a_file_that_belongs_to_a_source_is_part_of_its_fingerprint(tmp_path: Path) -> None:
    cells, proteins = make_adata(12, seed=1), make_adata(12, seed=1)
    proteins.var_names = [f"protein{n}" for n in range(proteins.n_vars)]
    paths = [write(cells, tmp_path / "rna.h5ad"), write(proteins, tmp_path / "adt.h5ad")]
    join = [{"path": str(paths[1]), "modality": "protein"}]
    source = {"path": str(paths[0]), "organism": "human", "join": join}
    config = schedule(tmp_path / "atlas", ingest={"sources": [source]})
    clock = FakeClock()
    assert names(scheduler(config, clock).once(), "landed") == {"rna"}
    assert scheduler(config, clock).once().unchanged == 1
    proteins.X = proteins.X * 2
    write(proteins, paths[1])
    assert [landing.committed for landing in scheduler(config, clock).once().landed] == [True]


def test_a_file_that_was_renamed_is_there_once_under_its_new_name(tmp_path: Path) -> None:
    atlas, clock = tmp_path / "atlas", FakeClock()
    paths = [write(make_adata(10, seed=seed), tmp_path / f"{seed}.h5ad") for seed in range(2)]
    config = schedule(atlas, tmp_path / "*.h5ad", vanished={"policy": "remove"})
    scheduler(config, clock).once()
    paths[0].rename(tmp_path / "renamed.h5ad")
    report = scheduler(config, clock).once()
    assert (names(report, "landed"), names(report, "removed"), report.is_well) == ({"renamed"}, {"0"}, True)
    snapshot = Atlas.open(atlas).snapshot()
    assert ({entry.dataset for entry in snapshot.shards}, snapshot.n_cells) == ({"1", "renamed"}, 20)
