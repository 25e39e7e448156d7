"""A state machine over everything that changes an atlas, beside a model of it in memory.

Half of the machines have sources of one shard each, whose donors change with the revision and with the column that is
kept as `donor`: there withdrawn cells have to be known by more than their donor. Whether a withdrawal has seen cells
that another one took first depends on which shards were made again, which the model does not follow.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
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
from cellmill.atlas.taken import taken_key
from cellmill.atlas.withdrawals import lift
from cellmill.atlas.withdrawing import remove
from cellmill.errors import AtlasError
from cellmill.ingestion import IngestConfig, SourceConfig, ingest, pipeline
from tests.ingestion.cells import genes

Cell = tuple[int, str]
"""Content and donor."""
Present = dict[str, frozenset[Cell]]
"""What a snapshot has of each source, cells that are hidden as duplicates included."""

N_CONTENTS, N_REVISIONS, SHARD_CELLS, ONE_SHARD = 9, 3, 3, 100
DONORS = ("d0", "d1", "d2")
COLUMNS = ("donor", "other")
SOURCES = {"a": "a", "a2": "a", "b": "b"}
"""Files, and the data sets that they belong to."""

COUNTS: Counter[str] = Counter()
"""How often each rule ran, for the record of a long run."""


def contents() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 4, (N_CONTENTS, 20)) + np.eye(N_CONTENTS, 20, dtype=np.int64) * 9


def contents_of(source: str, revision: int) -> list[int]:
    """Return some of the contents: many are twins of others."""
    rng = np.random.default_rng([list(SOURCES).index(source), revision])
    return [int(content) for content in rng.choice(N_CONTENTS, 6, replace=False)]


def donor_of(*seed: int) -> str:
    return DONORS[np.random.default_rng(seed).integers(len(DONORS))]


class AtlasMachine(RuleBasedStateMachine):
    """What the model says must be what the atlas has, in every snapshot that is not forgotten."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="cellmill-machine-"))
        self.root = self.folder / "atlas"
        self.patch = pytest.MonkeyPatch()
        # Pages and plots of each run are not what is tested here, and take most of the time.
        self.patch.setattr(pipeline, "write_run", lambda *arguments: self.folder)

    @initialize(shard_cells=st.sampled_from([SHARD_CELLS, ONE_SHARD]))
    def begin(self, shard_cells: int) -> None:
        self.shard_cells, self.is_relabelled = shard_cells, shard_cells == ONE_SHARD
        self.atlas = Atlas.create(self.root)
        self.present: Present = {}
        self.snapshots: dict[int, Present] = {0: {}}
        self.forgotten: set[int] = set()
        self.tags: dict[str, int] = {}
        self.withdrawn: dict[int, str] = {}
        self.taken: dict[int, set[tuple[str, int]]] = {}
        self.n_withdrawals = 0

    def cells_of(self, source: str, revision: int, column: str) -> list[Cell]:
        number = list(SOURCES).index(source)
        told = (revision, COLUMNS.index(column)) if self.is_relabelled else ()
        return [(content, donor_of(number, content, *told)) for content in contents_of(source, revision)]

    def write(self, source: str, revision: int) -> None:
        names = [f"cell{content}" for content in contents_of(source, revision)]
        obs = pd.DataFrame({"made": f"{source}{revision}"}, index=names)
        for column in COLUMNS:
            obs[column] = [donor for _, donor in self.cells_of(source, revision, column)]
        matrix = sparse.csr_matrix(contents()[contents_of(source, revision)].astype(np.float32))
        made = ad.AnnData(X=matrix, obs=obs, var=pd.DataFrame(index=genes(20)))
        made.write_h5ad(self.folder / f"{source}.h5ad")

    def config(self, source: str, column: str) -> IngestConfig:
        one = SourceConfig(
            path=str(self.folder / f"{source}.h5ad"), dataset=SOURCES[source], organism="human", obs={column: "donor"}
        )
        return IngestConfig(atlas=str(self.root), sources=(one,), backend="local", shard_cells=self.shard_cells)

    def is_gone(self, source: str, cell: Cell) -> bool:
        """Return whether a cell is withdrawn: it has such a donor, or a withdrawal took its content from the file."""
        return cell[1] in self.withdrawn.values() or any((source, cell[0]) in some for some in self.taken.values())

    def take(self, source: str, cells: Sequence[Cell]) -> None:
        for number, donor in self.withdrawn.items():
            self.taken[number] |= {(source, content) for content, label in cells if label == donor}

    def note(self, version: int, name: str) -> None:
        COUNTS[name] += 1
        known = self.snapshots.get(version)
        assert known is None or known == self.present
        self.snapshots[version] = dict(self.present)

    @rule(
        source=st.sampled_from(sorted(SOURCES)),
        revision=st.integers(0, N_REVISIONS - 1),
        column=st.sampled_from(COLUMNS),
    )
    def ingest(self, source: str, revision: int, column: str) -> None:
        """Add a file, change it, take another column for its donors, or ingest the same once more."""
        self.bring(source, revision, column)

    @precondition(lambda self: self.is_relabelled)
    @rule(source=st.sampled_from(sorted(SOURCES)), revision=st.integers(0, N_REVISIONS - 1), step=st.integers(0, 1))
    def withdraw_and_relabel(self, source: str, revision: int, step: int) -> None:
        """Withdraw a donor of a file, and bring the file again under other donors, or a later version of it."""
        self.bring(source, revision, COLUMNS[0])
        if source in self.present:
            self.drop(min(donor for _, donor in self.present[source]))
            self.bring(source, (revision + step) % N_REVISIONS, COLUMNS[1])

    def bring(self, source: str, revision: int, column: str) -> None:
        self.write(source, revision)
        result = ingest(self.config(source, column))
        cells = self.cells_of(source, revision, column)
        if result.changed:
            self.take(source, cells)
        kept = frozenset(cell for cell in cells if not self.is_gone(source, cell))
        if any(label not in self.withdrawn.values() for _, label in set(cells) - kept):
            COUNTS["ingest of cells that are known"] += 1
        self.present = {name: some for name, some in {**self.present, source: kept}.items() if some}
        self.note(result.snapshot, "ingest" if result.changed else "ingest unchanged")
        again = ingest(self.config(source, column))
        assert (again.changed, again.snapshot) == (False, result.snapshot)

    @rule(source=st.sampled_from(sorted(SOURCES)), revision=st.integers(0, N_REVISIONS - 1))
    def crash(self, source: str, revision: int) -> None:
        """Stop an ingestion right before its commit; what it wrote stays behind."""
        self.write(source, revision)

        def stop() -> None:
            raise KeyboardInterrupt

        before = self.atlas.snapshot().version
        try:
            result = ingest(self.config(source, COLUMNS[0]), guard=stop)
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
        if self.has_donors():
            self.drop(donor)

    def drop(self, donor: str) -> None:
        done = remove(self.atlas, f"donor = '{donor}'", "consent")
        if donor not in self.withdrawn.values():
            self.n_withdrawals += 1
            self.withdrawn[self.n_withdrawals] = donor
            self.taken[self.n_withdrawals] = set()
        for version in self.snapshots.keys() - self.forgotten:
            for source, cells in self.snapshots[version].items():
                self.take(source, [cell for cell in cells if cell[1] == donor])
        kept = {name: frozenset(c for c in cells if not self.is_gone(name, c)) for name, cells in self.present.items()}
        self.present = {name: cells for name, cells in kept.items() if cells}
        self.note(done.snapshot, "withdraw")

    def has_donors(self) -> bool:
        return "donor" in self.atlas.snapshot().columns

    @precondition(lambda self: self.withdrawn)
    @rule(last=st.booleans())
    def let_back(self, last: bool) -> None:
        number = max(self.withdrawn) if last else min(self.withdrawn)
        lift(self.atlas.storage, number, "a mistake")
        del self.withdrawn[number], self.taken[number]
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
        if any(self.is_gone(source, cell) for source, cells in target.items() for cell in cells):
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
        ledger = self.atlas.ledger(max(self.snapshots))
        lists = {taken_key(number, noted.cells) for number, noted in ledger.items() if noted.cells}
        assert {path.relative_to(self.root).as_posix() for path in (self.root / "withdrawals").glob("*/*")} == lists

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
