"""Compaction: the same cells in shards that all data sets share."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from cellmill.atlas import Atlas, ShardEntry, Snapshot, read
from cellmill.atlas.cells import CellsFile
from cellmill.atlas.cli import app
from cellmill.atlas.collecting import Forget, collect
from cellmill.atlas.compacting import compact
from cellmill.atlas.comparing import compare
from cellmill.atlas.entry import COMPACTED
from cellmill.atlas.exporting import export_arrow
from cellmill.atlas.leakage import find_leakage
from cellmill.atlas.measured import read_measured
from cellmill.atlas.mixed_shard import write_shards
from cellmill.atlas.overlay import Overlay, read_overlay, write_overlay
from cellmill.atlas.rollback import rollback
from cellmill.atlas.sealing import seal_shard
from cellmill.atlas.shard import open_shard
from cellmill.atlas.withdrawing import remove
from cellmill.errors import AtlasError, ConflictError, IntegrityError, StorageError
from cellmill.genes import N_SPECIALS
from cellmill.storage import Storage
from cellmill.stream import Stream, StreamConfig
from cellmill.stream.mixing import mixing
from cellmill.tokens import TokenConfig, Tokeniser
from tests.platform.atlas.builders import add_shard, random_counts

Cell = tuple[Any, ...]


def make(path: Path, sizes: dict[str, int] | None = None, seed: int = 0) -> Atlas:
    """Make data sets of different genes in different orders, with columns of several kinds, and hidden rows."""
    atlas = Atlas.create(path)
    entries = []
    for i, (name, n) in enumerate((sizes or {"alpha": 90, "beta": 50, "gamma": 30}).items()):
        first = 15 * i
        genes = range(first + 39, first - 1, -1) if i % 2 else range(first, first + 40)
        # A number here is a text there; one column is of one data set alone.
        age: Any = [f"{row % 90} years" for row in range(n)] if name == "beta" else np.arange(n)
        obs = {"age": age, "donor": [f"{name}-{row % 3}" for row in range(n)], f"of_{name}": np.arange(n) % 2 == 0}
        counts = random_counts(n, 40, seed=seed + i, largest=(9, 300, 70_000)[i % 3]).toarray()
        counts[n // 2] = 0
        licence = "MIT" if name == "beta" else "CC0"
        entry = add_shard(atlas, name, counts, genes=genes, obs=obs, licence=licence)
        if name == "alpha":
            overlay = Overlay(np.array([1, 7], np.uint32), np.array([4], np.uint32))
            name = write_overlay(atlas.storage, "alpha", overlay)
            entry = entry.model_copy(update={"overlay": name, "n_cells": n - 2})
        entries.append(entry)
    atlas.commit(entries)
    return atlas


def cells_of(snapshot: Snapshot, *, hidden: bool = False) -> Counter[Cell]:
    """Return every cell: id, data set, tokens and counts, what was measured, and all of its metadata."""
    found: Counter[Cell] = Counter()
    storage = snapshot.atlas.storage
    names = sorted(snapshot.columns.keys() - {"shard", "row"})
    for entry in snapshot.shards:
        shard = open_shard(storage, entry)
        columns, counts, indptr = shard.gather([0], [entry.n_rows])
        measured = read_measured(storage, entry, shard.tokens)
        table = snapshot.shard_cells(entry, names)
        shown = read_overlay(storage, entry).mask(entry.n_rows)
        for row, about in enumerate(table.to_pylist()):
            if bool(shown[row]) == hidden:
                continue
            a, b = indptr[row], indptr[row + 1]
            tokens = frozenset(zip(shard.tokens[columns[a:b]].tolist(), counts[a:b].tolist(), strict=True))
            which = 0 if measured.of_row is None else int(measured.of_row[row])
            told = tuple(None if about[name] is None else str(about[name]) for name in names)
            found[tokens, frozenset(measured.sets[which].tolist()), told] += 1
    return found


@pytest.fixture
def atlas(tmp_path: Path) -> Atlas:
    return make(tmp_path / "atlas")


@settings(max_examples=8)
@given(
    sizes=st.dictionaries(st.sampled_from(["alpha", "beta", "gamma", "delta"]), st.integers(8, 60), min_size=1),
    shard_cells=st.integers(5, 200),
    seed=st.integers(0, 2**32),
)
def test_every_cell_is_there_as_before(sizes: dict[str, int], shard_cells: int, seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        atlas = make(Path(folder) / "atlas", sizes, seed % 1000)
        old = atlas.snapshot()
        done = compact(atlas, seed=seed, shard_cells=shard_cells)
        new = atlas.snapshot()
        assert done.changed
        assert new.version == 2
        assert {entry.dataset for entry in new.shards} == {COMPACTED}
        assert cells_of(new) == cells_of(old)
        assert cells_of(new, hidden=True) == cells_of(old, hidden=True)
        assert done.datasets == {name: n - 2 * (name == "alpha") for name, n in sorted(sizes.items())}
        assert atlas.verify().sound


def test_the_table_and_the_matrix_are_the_same(atlas: Atlas) -> None:
    compact(atlas, shard_cells=40)
    for where in (None, "dataset == 'gamma'", "licence in ['MIT']", "age > 20", "age == '7 years'", "is_duplicate"):
        before, after = (read(atlas.url, version, where) for version in (1, 2))
        before, after = (one[np.argsort(one.obs["cell_id"].to_numpy())] for one in (before, after))
        texts = [one.obs.astype(object).where(one.obs.notna(), None).astype(str) for one in (before, after)]
        pd.testing.assert_frame_equal(*texts)
        assert before.var.equals(after.var)
        assert (before.X != after.X).nnz == 0


@pytest.mark.parametrize(
    "where",
    [
        "dataset == 'beta'",
        "dataset != 'beta' and n_genes > 10",
        "licence in ['MIT']",
        "organism == 'human'",
        "organism == 'mouse'",
        "source_url = '/data/gamma.h5ad'",
        "age > 20",
        "age < 20 or dataset == 'beta'",
        "age == 7",
        "age in [3, '3 years']",
        "of_alpha",
        "of_beta is null",
        "contains(donor, 'gamma')",
    ],
)
def test_predicates_find_the_same_cells(atlas: Atlas, where: str) -> None:
    old = atlas.snapshot()
    compact(atlas, shard_cells=40)
    ids = [sorted(one.select(where).cells(["cell_id"])["cell_id"].to_pylist()) for one in (old, atlas.snapshot())]
    assert ids[0] == ids[1]


def test_lineage_reaches_the_sources_and_licences(atlas: Atlas) -> None:
    compact(atlas, shard_cells=40)
    for where in (None, "dataset != 'beta' and n_genes > 10", "donor == 'beta-1'"):
        told = []
        for version in (1, 2):
            snapshot = atlas.snapshot(version)
            tree = snapshot.lineage(snapshot.select(where) if where else None)
            told.append(
                [(one.name, one.facts, [source.model_dump() for source in one.parents]) for one in tree.parents]
            )
        assert told[0] == told[1]


def test_a_diff_says_that_no_cell_changed_and_leakage_still_finds_cells(atlas: Atlas) -> None:
    compact(atlas, shard_cells=40)
    found = compare(atlas.snapshot(1), atlas.snapshot(2))
    assert found.cells_before == found.cells_after
    for change in found.datasets.values():
        assert (change.kind, change.cells_added, change.cells_removed) == ("changed", 0, 0)
        assert (change.features_added, change.features_removed) == (0, 0)
        assert change.sources_before == change.sources_after
        assert (change.cells_before, change.licence_before) == (change.cells_after, change.licence_after)
    sides = ("dataset == 'alpha'", "donor == 'alpha-1' or dataset == 'beta'")
    told = [find_leakage(*(atlas.snapshot(v).select(where) for where in sides)) for v in (1, 2)]
    assert told[0].model_dump(exclude={"a", "b"}) == told[1].model_dump(exclude={"a", "b"})
    assert told[0].same_cells == 28
    across = find_leakage(atlas.snapshot(1).select(), atlas.snapshot(2).select())
    assert across.same_cells == atlas.snapshot().n_cells


def test_it_is_a_commit_that_can_be_undone_and_collected(atlas: Atlas) -> None:
    before = cells_of(atlas.snapshot())
    compact(atlas, ["alpha", "gamma"], shard_cells=40)
    assert atlas.log()[0].message == "compact alpha, gamma"
    assert [entry.dataset for entry in atlas.snapshot().shards].count("beta") == 1
    assert cells_of(atlas.snapshot()) == before
    assert cells_of(atlas.snapshot(1)) == before
    assert rollback(atlas, 1)[1]
    assert [entry.dataset for entry in atlas.snapshot().shards] == ["alpha", "beta", "gamma"]
    assert rollback(atlas, 2)[1]
    collect(atlas, Forget(), grace_s=0)
    assert not list(Path(atlas.url).glob("shards/alpha/*"))
    assert cells_of(atlas.snapshot()) == before
    assert atlas.verify().sound


def test_the_same_again_is_nothing_and_another_seed_is_another_order(atlas: Atlas) -> None:
    compact(atlas, shard_cells=40, seed=1)
    assert not compact(atlas, shard_cells=40, seed=1).changed
    assert not compact(atlas, ["beta"], shard_cells=40, seed=1).changed
    first = atlas.snapshot().cells(["cell_id"])["cell_id"].to_pylist()
    assert compact(atlas, shard_cells=40, seed=2).changed
    second = atlas.snapshot().cells(["cell_id"])["cell_id"].to_pylist()
    assert first != second
    assert sorted(first) == sorted(second)
    assert cells_of(atlas.snapshot()) == cells_of(atlas.snapshot(1))


@pytest.mark.parametrize("threads", [2, 5])
def test_the_bytes_are_the_same_with_any_number_of_threads(atlas: Atlas, tmp_path: Path, threads: int) -> None:
    one = make(tmp_path / "one")
    done: list[int] = []
    compact(one, shard_cells=20)
    found = compact(atlas, shard_cells=20, threads=threads, progress=done.append)
    assert sum(done) == sum(found.datasets.values()) + found.hidden
    assert len(atlas.snapshot().shards) > threads
    written = [[entry.model_copy(update={"created": ""}) for entry in each.snapshot().shards] for each in (atlas, one)]
    assert written[0] == written[1]
    assert atlas.verify().sound


def test_a_run_that_was_cut_off_goes_on(atlas: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = make(tmp_path / "other")
    compact(other, shard_cells=40)
    made: list[ShardEntry] = []

    def killed(*arguments: Any) -> ShardEntry:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(seal_shard(*arguments))
        return made[-1]

    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setattr("cellmill.atlas.mixed_shard.seal_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        compact(atlas, shard_cells=40)
    assert atlas.snapshot().version == 1
    assert not list(temporary.glob("*/*.data"))
    # What is complete stays; what was damaged since is written again.
    damaged = Path(atlas.url) / made[0].shard_path / "X/data/c/0"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    written: list[str] = []

    def noted(storage: Storage, draft: ShardEntry, *more: Any) -> ShardEntry:
        written.append(draft.digest)
        return seal_shard(storage, draft, *more)

    monkeypatch.setattr("cellmill.atlas.mixed_shard.seal_shard", noted)
    compact(atlas, shard_cells=40)
    assert len(written) == len(atlas.snapshot().shards) - 1
    assert made[1].digest not in written
    theirs = [(entry.digest, entry.checksum) for entry in other.snapshot().shards]
    assert [(entry.digest, entry.checksum) for entry in atlas.snapshot().shards] == theirs


def test_other_commits_may_come_between(atlas: Atlas, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def slow(*arguments: Any) -> list[ShardEntry]:
        made = write_shards(*arguments)
        calls.append(1)
        if len(calls) == 1:  # another data set: the commit is rebased
            atlas.commit([add_shard(atlas, "late", random_counts(20, 30, seed=9))], message="late")
        if len(calls) == 2:  # the very shards: the compaction begins again
            remove(atlas, "donor == 'alpha-2'", "consent")
        return made

    monkeypatch.setattr("cellmill.atlas.compacting.write_shards", slow)
    compact(atlas, ["alpha", "beta"], shard_cells=40)
    assert len(calls) == 1
    assert {entry.dataset for entry in atlas.snapshot().shards} == {COMPACTED, "gamma", "late"}
    rollback(atlas, 2)
    compact(atlas, shard_cells=40, seed=3)
    assert len(calls) == 3
    assert atlas.snapshot().select("donor == 'alpha-2'").n_cells == 0
    assert atlas.snapshot().n_cells == 168 + 20 - 30
    assert atlas.verify().sound

    def hasty(*arguments: Any) -> list[ShardEntry]:
        made = write_shards(*arguments)
        atlas.commit(remove=[atlas.snapshot().shards[0].key])
        return made

    monkeypatch.setattr("cellmill.atlas.compacting.write_shards", hasty)
    monkeypatch.setattr("cellmill.atlas.compacting._ATTEMPTS", 2)
    with pytest.raises(ConflictError, match="2 times"):
        compact(atlas, shard_cells=40, seed=4)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_damaged_shard_ends_it_and_nothing_changes(atlas: Atlas, threads: int) -> None:
    entry = atlas.snapshot().shards[1]
    path = Path(atlas.url) / entry.shard_path / "X/data/c/0"
    content = bytearray(path.read_bytes())
    content[len(content) // 4] ^= 1
    path.write_bytes(content)
    with pytest.raises(IntegrityError):
        compact(atlas, threads=threads)
    assert atlas.snapshot().version == 1


def test_bad_requests_are_refused(atlas: Atlas, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AtlasError, match="no data set 'delta'"):
        compact(atlas, ["delta"])
    monkeypatch.setattr("cellmill.atlas.compaction_plan.CompactionPlan.temporary_bytes", 1 << 62)
    with pytest.raises(StorageError, match="temporary files"):
        compact(atlas)


def test_withdrawal_rewrites_compacted_shards(atlas: Atlas) -> None:
    compact(atlas, shard_cells=40)
    done = remove(atlas, "donor == 'alpha-1'", "consent")
    assert done.cells == {"alpha": 28}  # two of its 30 are hidden
    snapshot = atlas.snapshot()
    assert snapshot.select("dataset == 'alpha'").n_cells == 60
    assert snapshot.select("dataset == 'beta'").n_cells == 50
    assert not snapshot.select("donor == 'alpha-1'").n_cells
    assert atlas.verify().sound
    remove(atlas, "dataset == 'gamma'", "consent")
    assert "gamma" not in {name for entry in atlas.snapshot().shards for name in entry.datasets}
    assert atlas.verify().sound
    collect(atlas, Forget(), grace_s=0)
    stored = [CellsFile(atlas.storage, entry).read(["donor"]) for entry in atlas.snapshot().shards]
    assert "alpha-1" not in pa.concat_tables(stored)["donor"].to_pylist()
    with pytest.raises(AtlasError):
        rollback(atlas, 2)


def test_the_stream_gives_every_cell_once_with_the_same_tokens(atlas: Atlas) -> None:
    compact(atlas, shard_cells=40)
    export_arrow(atlas.snapshot(), Path(atlas.url).parent / "arrow")
    streams = []
    for snapshot in (atlas.snapshot(1), atlas.snapshot(2), Atlas.open(Path(atlas.url).parent / "arrow").snapshot()):
        streams.append(tokens_by_cell(snapshot, atlas))
    assert len(streams[0]) == atlas.snapshot().n_cells
    assert streams[0] == streams[1] == streams[2]


def tokens_by_cell(snapshot: Snapshot, atlas: Atlas) -> dict[int, Any]:
    """Return the tokens of each cell, zeros of what was measured among them."""
    panel = np.arange(N_SPECIALS, atlas.vocabulary().size, dtype=np.uint32)
    tokens = TokenConfig(max_genes=60, include_zero="all", prompt_ratios=(0.5,))
    config = StreamConfig(batch_size=16, window=32, run=8, group_cells=50)
    found: dict[int, Any] = {}
    for batch in Stream(snapshot.select(), Tokeniser(tokens), config).epoch(0):
        for cell in range(batch.n_cells):
            part = slice(batch.cu_seqlens[cell], batch.cu_seqlens[cell + 1])
            cell_id = int(batch.cell_id[cell])
            assert cell_id not in found
            perceptual = np.arange(part.stop - part.start) < batch.n_pcpt[cell]
            found[cell_id] = sorted(
                zip(batch.gene[part].tolist(), batch.value[part].tolist(), perceptual.tolist(), strict=True)
            )
    assert panel.size > 60
    return found


def test_neighbouring_rows_are_as_mixed_as_chance_makes_them(tmp_path: Path) -> None:
    sizes = {f"set{i}": n for i, n in enumerate((2000, 1000, 700, 300))}
    atlas = Atlas.create(tmp_path / "atlas")
    atlas.commit([add_shard(atlas, name, random_counts(n, 10, seed=n)) for name, n in sizes.items()])
    found = []
    for _ in range(2):
        column = atlas.snapshot().cells(["dataset"])["dataset"].to_pylist()
        codes = np.array([int(name[3:]) for name in column], np.int32)
        found.append(mixing(codes, np.full(125, 32), np.array(list(sizes.values()))))
        compact(atlas, shard_cells=1000)
    assert found[0] < 0.1
    assert found[1] == pytest.approx(1.0, abs=0.02)


def test_the_command(atlas: Atlas) -> None:
    runner = CliRunner()
    trial = runner.invoke(app, ["compact", atlas.url, "--dry-run", "--json", "--shard-cells", "40"])
    assert trial.exit_code == 0
    assert atlas.snapshot().version == 1
    told = json.loads(trial.stdout)
    assert (told["datasets"], told["hidden"], told["shards_after"]) == ({"alpha": 88, "beta": 50, "gamma": 30}, 2, 5)
    done = runner.invoke(app, ["compact", atlas.url, "-d", "alpha", "-d", "beta", "--seed", "5"])
    assert done.exit_code == 0, done.output
    assert atlas.snapshot().version == 2
    shown = json.loads(runner.invoke(app, ["show", atlas.url, "--json"]).stdout)
    assert {name: row["cells"] for name, row in shown["datasets"].items()} == {"alpha": 88, "beta": 50, "gamma": 30}
    assert {name: row["licence"] for name, row in shown["datasets"].items()}["beta"] == "MIT"
    assert [row["shards"] for row in shown["datasets"].values()] == [1, 1, 1]
