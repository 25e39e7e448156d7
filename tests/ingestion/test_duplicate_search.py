from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellmill.atlas import ShardEntry, spill
from cellmill.atlas import hash_run_writing as writing
from cellmill.atlas.cell_keys import shard_keys
from cellmill.atlas.cells import CellsFile
from cellmill.atlas.hash_index import FAN, HashIndex
from cellmill.atlas.overlay import read_overlay
from cellmill.ingestion import duplicates
from cellmill.ingestion.config import DuplicateConfig
from cellmill.ingestion.duplicates import find_duplicates
from cellmill.ingestion.superseding import Leaving
from cellmill.storage import Storage
from tests.ingestion.metadata import metadata_shard

MIN_GENES = 200


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a few cells go the way of many: several parts, temporary files, several sorted pieces."""
    monkeypatch.setattr(duplicates, "_PART", 16)
    monkeypatch.setattr(spill, "_IN_MEMORY", 500)
    monkeypatch.setattr(writing, "_SORTED_AT_ONCE", 20)


def random_hashes(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, (n, 2), dtype=np.uint64)


HASHES = random_hashes(12, 0)

cells = st.lists(st.tuples(st.integers(0, 11), st.integers(0, 2)), min_size=1, max_size=12)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 4), cells, st.integers(1, 3)),
        st.tuples(st.just("rollback"), st.integers(0, 20), st.just([]), st.just(1)),
    ),
    min_size=2,
    max_size=12,
)


def names(storage: Storage, entry: ShardEntry) -> list[tuple[bytes, str]]:
    """Return what each cell of a shard is equal in."""
    table = CellsFile(storage, entry).read(["content_hash", "barcode", "n_genes"]).to_pylist()
    return [(row["content_hash"], row["barcode"] if row["n_genes"] < MIN_GENES else "") for row in table]


def shown(storage: Storage, entries: list[ShardEntry]) -> Counter[tuple[bytes, str]]:
    found: Counter[tuple[bytes, str]] = Counter()
    for entry in entries:
        hidden = set(read_overlay(storage, entry).hidden.tolist())
        found.update(name for row, name in enumerate(names(storage, entry)) if row not in hidden)
    return found


def all_of(storage: Storage, entries: list[ShardEntry]) -> list[Leaving]:
    return [Leaving(entry, read_overlay(storage, entry).mask(entry.n_rows)) for entry in entries]


@settings(max_examples=80)
@given(steps)
def test_each_cell_is_shown_once_whatever_comes_goes_and_is_rolled_back(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, list[tuple[int, int]], int]]
) -> None:
    storage = Storage.open(tmp_path_factory.mktemp("atlas"))
    history: list[list[ShardEntry]] = [[]]
    for number, (what, which, content, n_shards) in enumerate(steps):
        before = history[-1]
        if what == "rollback":
            history.append(history[which % len(history)])
            continue
        gone = [entry for entry in before if entry.dataset == f"d{which}"]
        stay = [entry for entry in before if entry.dataset != f"d{which}"]
        new = []
        for shard, part in enumerate(np.array_split(np.array(content), n_shards)):
            # The first four contents are nearly empty cells; barcodes of all are drawn from three.
            few = np.where(part[:, 0] < 4, 3, 1000) if len(part) else 1000
            barcodes = [f"b{b}" for b in part[:, 1]]
            new.append(
                metadata_shard(
                    storage, f"d{which}", f"{number}-{shard}", HASHES[part[:, 0]], n_genes=few, barcodes=barcodes
                )
            )
        found = find_duplicates(storage, new, stay, all_of(storage, gone), DuplicateConfig(min_genes=MIN_GENES))
        changed = {entry.key for entry in found.changed}
        after = [*found.entries, *found.changed, *(entry for entry in stay if entry.key not in changed)]
        history.append(after)

        everything = {name for entry in after for name in names(storage, entry)}
        assert shown(storage, after) == Counter(dict.fromkeys(everything, 1))
        # What was there stays, and what the new data set lost is counted.
        for entry in stay:
            now = next(e for e in after if e.key == entry.key)
            assert set(read_overlay(storage, now).hidden.tolist()) <= set(read_overlay(storage, entry).hidden.tolist())
            assert now.n_cells == now.n_rows - read_overlay(storage, now).hidden.size
        hidden = sum(entry.n_rows - entry.n_cells for entry in found.entries)
        assert sum(counts.total() for counts in found.duplicates.values()) == hidden

        index = HashIndex(storage, after)
        assert len(index.runs) < FAN
        for entry in after:
            keys, _ = shard_keys(storage, entry)
            order = np.lexsort(keys.T[::-1])
            there = index.find(keys[order], np.zeros(len(keys), bool))
            assert ((there.shown < len(after)) | (there.n_hidden > 0)).all()
        for run in index.runs.values():
            run.verify()


def test_policies_on_equal_cells(tmp_path: Path) -> None:
    storage = Storage.open(tmp_path)
    hashes = random_hashes(6, 1)
    first = find_duplicates(storage, [metadata_shard(storage, "a", "1", hashes[:3])], [], [], DuplicateConfig())
    # One cell that was there, one that comes twice, one that is alone.
    new = [metadata_shard(storage, "b", "1", hashes[[0, 4, 5, 4]], source_rows=[0, 3, 2, 1])]

    def after(policy: str) -> tuple[list[int], list[int], dict[str, int]]:
        found = find_duplicates(storage, new, first.entries, [], DuplicateConfig.model_validate({"policy": policy}))
        assert not found.changed
        overlay = read_overlay(storage, found.entries[0])
        return overlay.hidden.tolist(), overlay.duplicate.tolist(), dict(found.duplicates.get("b/1", {}))

    assert after("keep_first") == ([0, 1], [], {"a": 1, "this ingestion": 1})
    assert after("mark") == ([], [0, 1], {"a": 1, "this ingestion": 1})
    assert after("drop") == ([0, 1, 3], [], {"a": 1, "this ingestion": 2})
    assert after("keep") == ([], [], {})


def test_what_was_dropped_stays_dropped_while_it_is_ambiguous(tmp_path: Path) -> None:
    storage = Storage.open(tmp_path)
    drop = DuplicateConfig(policy="drop")
    hashes = random_hashes(3, 2)
    twice = metadata_shard(storage, "a", "1", hashes[[0, 0, 1]])
    first = find_duplicates(storage, [twice], [], [], drop).entries
    assert first[0].n_cells == 1
    # A later copy of what was dropped is ambiguous, too; one of what was kept is a duplicate.
    second = find_duplicates(storage, [metadata_shard(storage, "b", "1", hashes)], first, [], drop)
    assert read_overlay(storage, second.entries[0]).hidden.tolist() == [0, 1]
    assert second.duplicates["b/1"] == {"a": 2}
    # When the first goes, only what is alone comes back.
    third = find_duplicates(storage, [], second.entries, all_of(storage, first), drop)
    assert read_overlay(storage, third.changed[0]).hidden.tolist() == [0]


@pytest.mark.parametrize("percent", [0, 10, 50])
def test_recall_and_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, percent: int) -> None:
    monkeypatch.setattr(duplicates, "_PART", 1 << 13)
    monkeypatch.setattr(writing, "_SORTED_AT_ONCE", 1 << 13)
    storage = Storage.open(tmp_path)
    n = 20_000
    known: list[ShardEntry] = []
    for i in range(3):
        new = [metadata_shard(storage, f"d{i}", f"{s}", random_hashes(n, 10 * i + s)) for s in range(2)]
        found = find_duplicates(storage, new, known, [], DuplicateConfig())
        assert not found.duplicates
        changed = {entry.key for entry in found.changed}
        known = [*found.entries, *found.changed, *(entry for entry in known if entry.key not in changed)]
    hashes = random_hashes(n, 99)
    rng = np.random.default_rng(1)
    rows = rng.choice(n, n * percent // 100, replace=False)
    hashes[rows] = random_hashes(n, 11)[rows]
    found = find_duplicates(storage, [metadata_shard(storage, "e", "1", hashes)], known, [], DuplicateConfig())
    assert read_overlay(storage, found.entries[0]).hidden.tolist() == sorted(rows.tolist())
    assert dict(found.duplicates.get("e/1", {})) == ({"d1": rows.size} if rows.size else {})
