"""A bounded folder of parts of remote files."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cellmill.range_cache import RangeCache
from tests.children import forkserver


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.name != "lock"]


def test_what_is_kept_is_what_was_put_and_the_folder_stays_within_its_bound(tmp_path: Path) -> None:
    limit = 200_000
    first, second = RangeCache(tmp_path, limit), RangeCache(tmp_path, limit)

    def work(i: int) -> None:
        cache = (first, second)[i % 2]
        cache.put(f"part {i}", "part", bytes([i % 251]) * (500 + i))
        found = cache.get(f"part {i // 2}", "part")
        assert found in (None, bytes([i // 2 % 251]) * (500 + i // 2))
        assert i % 10 or sum(path.stat().st_size for path in files(tmp_path)) <= limit

    with ThreadPoolExecutor(1) as pool:
        list(pool.map(work, range(600)))
    assert sum(path.stat().st_size for path in files(tmp_path)) > limit / 2
    assert first.get("part 599", "part") == second.get("part 599", "part") == bytes([599 % 251]) * 1099
    assert first.get("part 0", "part") is None


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    cache = RangeCache(tmp_path, 100_000)
    for i in range(80):
        cache.put(str(i), "part", bytes(1000))
        for path in files(tmp_path):
            os.utime(path, (path.stat().st_mtime - 100,) * 2)
        assert cache.get("0", "part") == bytes(1000)
    for i in range(80, 120):
        cache.put(str(i), "part", bytes(1000))
    assert cache.get("0", "part") == bytes(1000)
    assert cache.get("1", "part") is None


def test_a_damaged_file_counts_as_absent_and_is_replaced(tmp_path: Path) -> None:
    cache = RangeCache(tmp_path, 1e6)
    cache.put("a", "part", b"content")
    (path,) = files(tmp_path)
    for bad in (b"", b"con", path.read_bytes().replace(b"t", b"T", 1)):
        path.write_bytes(bad)
        assert cache.get("a", "part") is None
    cache.put("a", "part", b"content")
    assert cache.get("a", "part") == b"content"
    # What is too large for the folder is not kept.
    cache.put("b", "part", bytes(200_000))
    assert cache.get("b", "part") is None


LIMIT = 100_000
NAMES = 150


def content(number: int) -> bytes:
    return random.Random(number).randbytes(300 + 61 * number)


def use(folder: Path, seed: int, turns: int) -> None:
    """Read what is there, add what is not, and count both."""
    cache, chance = RangeCache(folder, LIMIT), random.Random(seed)
    hits = 0
    for _ in range(turns):
        number = chance.randrange(NAMES)
        found = cache.get(str(number), "part")
        assert found in (None, content(number))
        hits += found is not None
        if found is None:
            cache.put(str(number), "part", content(number))
    assert 0 < hits < turns


def size(folder: Path) -> int:
    """Return the bytes of all files at one moment: while the lock is held none comes and none goes."""
    with (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return sum(path.stat().st_size for path in files(folder))


def test_processes_that_share_a_folder_read_no_wrong_byte_and_keep_its_bound(tmp_path: Path) -> None:
    context = forkserver()
    children = [context.Process(target=use, args=(tmp_path, seed, 250)) for seed in range(6)]
    victim = context.Process(target=use, args=(tmp_path, 6, 1 << 30))
    for child in (*children, victim):
        child.start()
    largest = 0
    while any(child.is_alive() for child in children):
        largest = max(largest, size(tmp_path))
        time.sleep(0.001)
    # One is killed at what it does, and the others go on.
    assert victim.pid is not None
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert LIMIT / 2 < largest <= LIMIT
    use(tmp_path, 7, 200)
    assert size(tmp_path) <= LIMIT
