from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellmill.atlas import hash_search
from cellmill.atlas.cell_keys import shard_keys
from cellmill.atlas.hash_run import BLOCK, HIDDEN, MARK, HashRun, Member, counts, encode_members, run_name, tail
from cellmill.atlas.hash_run_writing import write_run
from cellmill.atlas.hash_search import NOBODY, Matches, search
from cellmill.atlas.overlay import Overlay, write_overlay
from cellmill.atlas.sorted_records import FileReader, merge, sort_records
from cellmill.errors import IntegrityError
from cellmill.storage import Storage
from tests.platform.atlas.builders import small_atlas

halves = st.sampled_from([0, 1, 2, 2**63, 2**64 - 1])
barcodes = st.integers(0, 3)


def put_run(storage: Storage, records: Any, members: Sequence[Member]) -> HashRun:
    """Write a run by the letter of its format."""
    import hashlib

    records = records[np.lexsort(records.T[::-1])]
    encoded = encode_members(members)
    body = records.tobytes() + records[::BLOCK].tobytes() + encoded + counts(len(records), len(encoded))
    path = f"hashes/{run_name(members)}"
    storage.put(path, body[:-16] + tail(len(records), len(encoded), hashlib.sha256(body).digest()))
    assert storage.get(path).endswith(MARK)
    return HashRun(storage, path)


def records_of(cells: Sequence[tuple[int, int, int, bool, int]]) -> Any:
    rows = [(high, low, barcode << 32 | hidden << 31 | member) for high, low, barcode, hidden, member in cells]
    return np.array(rows, dtype=np.uint64).reshape(-1, 3)


@settings(max_examples=60)
@given(
    st.lists(st.tuples(halves, halves, barcodes, st.booleans(), st.integers(0, 3)), max_size=40),
    st.lists(st.tuples(halves, halves, barcodes), max_size=12),
    st.booleans(),
    st.integers(1, 3000),
)
def test_a_search_finds_what_a_scan_finds(
    tmp_path_factory: pytest.TempPathFactory, known: Any, asked: Any, by_barcode: bool, repeat: int
) -> None:
    storage = Storage.open(tmp_path_factory.getbasetemp() / "runs")
    # Cells that are there many times span blocks.
    known = known + known[:1] * repeat
    run = put_run(storage, records_of(known), [Member(f"d{i}", "x", "") for i in range(4)])
    shard_of = np.array([5, -1, 3, 7])
    keys = np.unique(np.array([(h, lo, b << 32) for h, lo, b in asked], np.uint64).reshape(-1, 3), axis=0)
    matches, looked_up = Matches.none(len(keys)), Matches.none(len(keys))
    search(run, shard_of, keys, np.full(len(keys), by_barcode), matches)
    with patch.object(hash_search, "_MANY", 0):
        search(run, shard_of, keys, np.full(len(keys), by_barcode), looked_up)
    for name in ("shown", "hidden", "n_hidden"):
        assert np.array_equal(getattr(matches, name), getattr(looked_up, name))
    for i, (high, low, barcode) in enumerate(keys.tolist()):
        equal = [
            (hidden, int(shard_of[member]))
            for h, lo, b, hidden, member in known
            if (h, lo) == (high, low) and (not by_barcode or b == barcode >> 32) and shard_of[member] >= 0
        ]
        hidden = [shard for is_hidden, shard in equal if is_hidden]
        shown = [shard for is_hidden, shard in equal if not is_hidden]
        assert matches.shown[i] == min(shown, default=NOBODY)
        assert matches.hidden[i] == min(hidden, default=NOBODY)
        assert matches.n_hidden[i] == len(hidden)


def test_a_few_hashes_read_a_few_kilobytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    known = rng.integers(0, 2**64, (200 * BLOCK + 17, 3), dtype=np.uint64)
    known[:, 2] = 0
    run = put_run(Storage.open(tmp_path), known, [Member("d", "x", "")])
    start = run.bytes_read
    picked = known[rng.choice(len(known), 20, replace=False)]
    others = rng.integers(0, 2**64, (20, 3), dtype=np.uint64)
    keys = sort_records(np.concatenate([picked, others]))
    matches = Matches.none(40)
    search(run, np.array([0]), keys, np.zeros(40, bool), matches)
    assert (matches.shown == 0).sum() == 20
    assert run.bytes_read - start <= 40 * 2 * 64 * 24 + 2 * BLOCK * 24
    everything = Matches.none(len(known))
    search(run, np.array([0]), sort_records(known), np.zeros(len(known), bool), everything)
    assert (everything.shown == 0).all()
    run.verify()


def test_a_run_holds_the_cells_of_its_shards_however_it_is_made(tmp_path: Path) -> None:
    atlas = small_atlas(tmp_path)
    storage = atlas.storage
    overlay = Overlay(np.array([3, 9], np.uint32), np.array([5], np.uint32))
    first, second = atlas.snapshot().shards
    first = first.model_copy(update={"overlay": write_overlay(storage, first.dataset, overlay)})
    name = write_run(storage, [second, first])
    content = storage.get(f"hashes/{name}")
    run = HashRun(storage, f"hashes/{name}")
    assert run.members == (Member.of(first), Member.of(second))
    keys = np.concatenate([shard_keys(storage, entry)[0] for entry in (first, second)])
    keys[:, 2] |= np.repeat(np.arange(2), [60, 40]).astype(np.uint64)
    keys[[3, 9], 2] |= np.uint64(HIDDEN)
    assert np.array_equal(run.read([0], [run.n]), keys[np.lexsort(keys.T[::-1])])
    run.verify()
    # The same by merging: what other runs have beside it, and of two that have a shard the second, is left out.
    alone = [HashRun(storage, f"hashes/{write_run(storage, [entry])}") for entry in (first, second)]
    storage.delete(f"hashes/{name}")
    assert write_run(storage, [first, second], [*alone, alone[0]]) == name
    assert storage.get(f"hashes/{name}") == content
    whole = HashRun(storage, f"hashes/{name}")
    again = write_run(storage, [second])
    storage.delete(f"hashes/{again}")
    assert write_run(storage, [second], [whole]) == again
    HashRun(storage, f"hashes/{again}").verify()


@settings(max_examples=30)
@given(st.lists(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 9)), max_size=30), max_size=5))
def test_merging_is_sorting(tmp_path_factory: pytest.TempPathFactory, parts: list[list[tuple[int, int, int]]]) -> None:
    folder = tmp_path_factory.mktemp("pieces")
    arrays = [np.array(part, np.uint64).reshape(-1, 3) for part in parts]
    # Many records, so that pieces are read in several steps.
    arrays = [np.repeat(array, 300, axis=0) for array in arrays]
    for i, array in enumerate(arrays):
        sort_records(array).tofile(folder / str(i))
    merged = list(merge([FileReader(folder / str(i)) for i in range(len(arrays))], memory=1 << 14))
    everything = np.concatenate([np.empty((0, 3), np.uint64), *arrays])
    found = np.concatenate([np.empty((0, 3), np.uint64), *merged])
    assert np.array_equal(found, everything[np.lexsort(everything.T[::-1])])


def test_damage_is_found(tmp_path: Path) -> None:
    atlas = small_atlas(tmp_path)
    name = write_run(atlas.storage, atlas.snapshot().shards)
    path = tmp_path / "hashes" / name
    content = path.read_bytes()
    for position in (0, 1000, len(content) - 60, len(content) - 20, len(content) - 120):
        path.write_bytes(content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :])
        with pytest.raises(IntegrityError):
            HashRun(atlas.storage, f"hashes/{name}").verify()
    path.write_bytes(content[:-5])
    with pytest.raises(IntegrityError):
        HashRun(atlas.storage, f"hashes/{name}")
    path.unlink()
    with pytest.raises(IntegrityError):
        HashRun(atlas.storage, f"hashes/{name}")
