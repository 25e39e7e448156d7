"""A state machine over everything that changes an atlas, beside a model of it in memory."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from scipy import sparse

from cellmill.atlas import Atlas
from cellmill.atlas.cells import CellsFile
from cellmill.atlas.collecting import Forget, collect
from cellmill.atlas.compacting import compact
from cellmill.atlas.rollback import rollback
from cellmill.atlas.tags import add_tag, delete_tag
from cellmill.atlas.withdrawals import lift
from cellmill.atlas.withdrawing import remove
from cellmill.errors import AtlasError
from cellmill.ingestion import IngestConfig, SourceConfig, ingest, pipeline
from tests.ingestion.cells import genes

Cell = tuple[int, str]
"""Content and donor."""
Present = dict[str, frozenset[Cell]]
"""What a snapshot has of each source, cells that are hidden as duplicates included."""

N_CONTENTS, N_REVISIONS, SHARD_CELLS = 9, 3, 3
DONORS = ("d0", "d1", "d2")
SOURCES = {"a": "a", "a2": "a", "b": "b"}
"""Files, and the data sets that they belong to."""

COUNTS: Counter[str] = Counter()
"""How often each rule ran, for the record of a long run."""


def contents() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 4, (N_CONTENTS, 20)) + np.eye(N_CONTENTS, 20, dtype=np.int64) * 9


def cells_of(source: str, revision: int) -> list[Cell]:
    """Return some of the contents, with donors that differ by source and revision: many are twins of others."""
    rng = np.random.default_rng([list(SOURCES).index(source), revision])
    chosen = rng.choice(N_CONTENTS, 6, replace=False)
    return [(int(content), DONORS[rng.integers(len(DONORS))]) for content in chosen]


def write_source(path: Path, source: str, revision: int) -> None:
    cells = cells_of(source, revision)
    obs = pd.DataFrame(
        {"donor": [donor for _, donor in cells], "made": f"{source}{revision}"},
        index=[f"cell{content}" for content, _ in cells],
    )
    matrix = sparse.csr_matrix(contents()[[content for content, _ in cells]].astype(np.float32))
    ad.AnnData(X=matrix, obs=obs, var=pd.DataFrame(index=genes(20))).write_h5ad(path)


class AtlasMachine(RuleBasedStateMachine):
    """What the model says must be what the atlas has, in every snapshot that is not forgotten."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="cellmill-machine-"))
        self.root = self.folder / "atlas"
        self.patch = pytest.MonkeyPatch()
        # Pages and plots of each run are not what is tested here, and take most of the time.
        self.patch.setattr(pipeline, "write_run", lambda *arguments: self.folder)

    @initialize()
    def begin(self) -> None:
        self.atlas = Atlas.create(self.root)
        self.present: Present = {}
        self.snapshots: dict[int, Present] = {0: {}}
        self.forgotten: set[int] = set()
        self.tags: dict[str, int] = {}
        self.withdrawn: dict[int, str] = {}
        self.n_withdrawals = 0

    def config(self, source: str) -> IngestConfig:
        one = SourceConfig(
            path=str(self.folder / f"{source}.h5ad"), dataset=SOURCES[source], organism="human", obs={"donor": "donor"}
        )
        return IngestConfig(atlas=str(self.root), sources=(one,), backend="local", shard_cells=SHARD_CELLS)

    def expected(self, source: str, revision: int) -> frozenset[Cell]:
        gone = set(self.withdrawn.values())
        return frozenset(cell for cell in cells_of(source, revision) if cell[1] not in gone)

    def note(self, version: int, name: str) -> None:
        COUNTS[name] += 1
        known = self.snapshots.get(version)
        assert known is None or known == self.present
        self.snapshots[version] = dict(self.present)

    @rule(source=st.sampled_from(sorted(SOURCES)), revision=st.integers(0, N_REVISIONS - 1))
    def ingest(self, source: str, revision: int) -> None:
        """Add a file, change it, or ingest the same once more."""
        write_source(self.folder / f"{source}.h5ad", source, revision)
        result = ingest(self.config(source))
        self.present = {**self.present, source: self.expected(source, revision)}
        self.present = {name: cells for name, cells in self.present.items() if cells}
        self.note(result.snapshot, "ingest" if result.changed else "ingest unchanged")
        again = ingest(self.config(source))
        assert (again.changed, again.snapshot) == (False, result.snapshot)

    @rule(source=st.sampled_from(sorted(SOURCES)), revision=st.integers(0, N_REVISIONS - 1))
    def crash(self, source: str, revision: int) -> None:
        """Stop an ingestion right before its commit; what it wrote stays behind."""
        write_source(self.folder / f"{source}.h5ad", source, revision)

        def stop() -> None:
            raise KeyboardInterrupt

        before = self.atlas.snapshot().version
        try:
            result = ingest(self.config(source), guard=stop)
        except KeyboardInterrupt:
            COUNTS["crash"] += 1
        else:
            assert not result.changed
        assert self.atlas.snapshot().version == before

    @precondition(lambda self: self.atlas.snapshot().shards)
    @rule(shard_cells=st.integers(2, 8), seed=st.integers(0, 1), one=st.booleans())
    def compact(self, shard_cells: int, seed: int, one: bool) -> None:
        """Shuffle all data sets, or the first, into new shards."""
        first = min(name for entry in self.atlas.snapshot().shards for name in entry.datasets)
        done = compact(self.atlas, [first] if one else [], seed=seed, shard_cells=shard_cells)
        self.note(done.snapshot, "compact" if done.changed else "compact unchanged")

    @rule(donor=st.sampled_from(DONORS))
    def withdraw(self, donor: str) -> None:
        done = remove(self.atlas, f"donor = '{donor}'", "consent") if self.has_donors() else None
        if done is None:
            return
        if donor not in self.withdrawn.values():
            self.n_withdrawals += 1
            self.withdrawn[self.n_withdrawals] = donor
        kept = {name: frozenset(c for c in cells if c[1] != donor) for name, cells in self.present.items()}
        self.present = {name: cells for name, cells in kept.items() if cells}
        self.note(done.snapshot, "withdraw")

    def has_donors(self) -> bool:
        return "donor" in self.atlas.snapshot().columns

    @precondition(lambda self: self.withdrawn)
    @rule(last=st.booleans())
    def let_back(self, last: bool) -> None:
        number = max(self.withdrawn) if last else min(self.withdrawn)
        lift(self.atlas.storage, number, "a mistake")
        del self.withdrawn[number]
        COUNTS["lift"] += 1

    @precondition(lambda self: len(self.snapshots) > 2)
    @rule(back=st.integers(1, 8))
    def roll_back(self, back: int) -> None:
        version = max(0, max(self.snapshots) - back)
        if version in self.forgotten:
            with pytest.raises(AtlasError, match="forgotten"):
                rollback(self.atlas, version)
            COUNTS["rollback to a forgotten one"] += 1
            return
        target = self.snapshots[version]
        gone = set(self.withdrawn.values())
        if any(donor in gone for cells in target.values() for _, donor in cells):
            with pytest.raises(AtlasError, match="withdrawn since"):
                rollback(self.atlas, version)
            COUNTS["rollback to withdrawn cells"] += 1
            return
        number, _ = rollback(self.atlas, version)
        self.present = dict(target)
        self.note(number, "rollback")

    @rule(name=st.sampled_from(["v1", "v2"]), back=st.integers(0, 5))
    def tag(self, name: str, back: int) -> None:
        version = max(0, max(self.snapshots) - back)
        if name in self.tags:
            delete_tag(self.atlas.storage, name)
            del self.tags[name]
            COUNTS["untag"] += 1
        elif version in self.forgotten:
            with pytest.raises(AtlasError, match="forgotten"):
                add_tag(self.atlas, name, version)
            COUNTS["tag of a forgotten one"] += 1
        else:
            add_tag(self.atlas, name, version)
            self.tags[name] = version
            COUNTS["tag"] += 1

    @rule(forget=st.booleans(), keep=st.integers(1, 3))
    def collect(self, forget: bool, keep: int) -> None:
        done = collect(self.atlas, Forget(keep_last=keep) if forget else None, grace_s=0)
        if forget:
            kept = {*sorted(self.snapshots)[-keep:], *self.tags.values()}
            wanted = set(self.snapshots) - kept - self.forgotten
            assert set(done.forgotten) == wanted
            self.forgotten |= wanted
        COUNTS["gc --forget" if forget else "gc"] += 1
        self.no_file_is_left_over()

    @rule()
    def reopen(self) -> None:
        self.atlas = Atlas.open(self.root)

    @invariant()
    def the_newest_snapshot_is_as_the_model_says(self) -> None:
        if not hasattr(self, "atlas"):
            return
        newest = self.atlas.snapshot()
        assert newest.version == max(self.snapshots)
        self.compare(newest.version)
        self.atlas.verify().check()

    def compare(self, version: int) -> None:
        """Every content is shown once, by a cell that is there."""
        snapshot, present = self.atlas.snapshot(version), self.snapshots[version]
        table = snapshot.cells(["dataset", "barcode", "donor"]).to_pydict() if snapshot.shards else {"dataset": []}
        shown = [
            (dataset, int(barcode.removeprefix("cell")), donor)
            for dataset, barcode, donor in zip(*table.values(), strict=True)
        ] if table["dataset"] else []  # fmt: skip
        assert sorted(content for _, content, _ in shown) == sorted({c for cells in present.values() for c, _ in cells})
        there = {(SOURCES[name], *cell) for name, cells in present.items() for cell in cells}
        assert set(shown) <= there
        rows = Counter[tuple[str, int, str]]()
        for entry in snapshot.shards:
            found = CellsFile(self.atlas.storage, entry).read(["dataset", "barcode", "donor"]).to_pylist()
            rows.update((row["dataset"], int(row["barcode"][4:]), row["donor"]) for row in found)
        assert rows == Counter((SOURCES[name], *cell) for name, cells in present.items() for cell in cells)

    def no_file_is_left_over(self) -> None:
        """Cells, counts, lists and hashes on disk are those that snapshots name, and no others."""
        named: set[str] = set()
        for version in set(self.snapshots) - self.forgotten:
            for entry in self.atlas.snapshot(version).shards:
                named |= {entry.cells_path, entry.shard_path}
                named |= {entry.overlay_path} if entry.overlay else set()
                named |= {entry.hash_run_path} if entry.hash_run else set()
        found = set()
        for folder, depth in (("cells", 2), ("shards", 2), ("overlays", 2), ("hashes", 1)):
            found |= {
                path.relative_to(self.root).as_posix() for path in (self.root / folder).glob("/".join("*" * depth))
            }
        assert found == named
        assert not list((self.root / "staging").glob("*"))

    def teardown(self) -> None:
        try:
            if hasattr(self, "atlas"):
                for version in self.snapshots:
                    if version in self.forgotten:
                        with pytest.raises(AtlasError, match="forgotten"):
                            self.atlas.snapshot(version)
                    else:
                        self.compare(version)
                        self.atlas.verify(version).check()
                self.collect_all()
        finally:
            self.patch.undo()
            shutil.rmtree(self.folder, ignore_errors=True)

    def collect_all(self) -> None:
        """Forget everything but the newest: no barcode of a withdrawn donor that nobody else shares stays."""
        for name in list(self.tags):
            delete_tag(self.atlas.storage, name)
        collect(self.atlas, Forget(), grace_s=0)
        self.forgotten = set(self.snapshots) - {max(self.snapshots)}
        self.no_file_is_left_over()
        self.compare(max(self.snapshots))
        self.atlas.verify().check()
