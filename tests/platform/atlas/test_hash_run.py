from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellmill.atlas.hash_run import BLOCK, HashRun, sort_hashes, write_run
from cellmill.errors import IntegrityError
from cellmill.storage import Storage

halves = st.sampled_from([0, 1, 2, 2**63, 2**64 - 1])


@settings(max_examples=40, deadline=None)
@given(st.sets(st.tuples(halves, halves)), st.lists(st.tuples(halves, halves)))
def test_contains_equals_a_set(
    tmp_path_factory: pytest.TempPathFactory, known: set[tuple[int, int]], asked: list[tuple[int, int]]
) -> None:
    storage = Storage.open(tmp_path_factory.getbasetemp() / "runs")
    name = write_run(storage, np.array(sorted(known), dtype=np.uint64).reshape(-1, 2))
    run = HashRun(storage, f"hashes/{name}")
    wanted = sort_hashes(np.array(asked, dtype=np.uint64).reshape(-1, 2))
    assert run.contains(wanted).tolist() == [(int(a), int(b)) in known for a, b in wanted]


def test_a_few_hashes_read_a_few_blocks(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    known = rng.integers(0, 2**64, (50 * BLOCK + 17, 2), dtype=np.uint64)
    storage = Storage.open(tmp_path)
    name = write_run(storage, known)
    assert write_run(storage, known[::-1]) == name
    run = HashRun(storage, f"hashes/{name}")
    start = run.bytes_read
    picked = known[rng.choice(len(known), 5, replace=False)]
    others = rng.integers(0, 2**64, (5, 2), dtype=np.uint64)
    asked = sort_hashes(np.concatenate([picked, others]))
    assert run.contains(asked).sum() == 5
    assert run.bytes_read - start <= 10 * 2 * BLOCK * 16
    assert run.contains(sort_hashes(known)).all()
    run.verify()


def test_damage_is_found(tmp_path: Path) -> None:
    storage = Storage.open(tmp_path)
    name = write_run(storage, np.arange(200, dtype=np.uint64).reshape(-1, 2))
    path = tmp_path / "hashes" / name
    content = path.read_bytes()
    for position in (0, 1000, len(content) - 60, len(content) - 20):
        path.write_bytes(content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :])
        with pytest.raises(IntegrityError):
            HashRun(storage, f"hashes/{name}").verify()
    path.write_bytes(content[:-5])
    with pytest.raises(IntegrityError):
        HashRun(storage, f"hashes/{name}")
    path.unlink()
    with pytest.raises(IntegrityError):
        HashRun(storage, f"hashes/{name}")
