"""A bounded folder of parts of remote files."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cellmill.range_cache import RangeCache


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.name != "lock"]


def test_what_is_kept_is_what_was_put_and_the_folder_stays_within_its_bound(tmp_path: Path) -> None:
    limit = 200_000
    first, second = RangeCache(tmp_path, limit), RangeCache(tmp_path, limit)

    def work(i: int) -> None:
        cache = (first, second)[i % 2]
        cache.put(f"part {i}", bytes([i % 251]) * (500 + i))
        found = cache.get(f"part {i // 2}")
        assert found in (None, bytes([i // 2 % 251]) * (500 + i // 2))
        assert sum(path.stat().st_size for path in files(tmp_path) if path.exists()) <= limit

    with ThreadPoolExecutor(1) as pool:
        list(pool.map(work, range(600)))
    assert sum(path.stat().st_size for path in files(tmp_path)) > limit / 2
    assert first.get("part 599") == second.get("part 599") == bytes([599 % 251]) * 1099
    assert first.get("part 0") is None


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    cache = RangeCache(tmp_path, 100_000)
    for i in range(80):
        cache.put(str(i), bytes(1000))
        for path in files(tmp_path):
            os.utime(path, (path.stat().st_mtime - 100,) * 2)
        assert cache.get("0") == bytes(1000)
    for i in range(80, 120):
        cache.put(str(i), bytes(1000))
    assert cache.get("0") == bytes(1000)
    assert cache.get("1") is None


def test_a_damaged_file_counts_as_absent_and_is_replaced(tmp_path: Path) -> None:
    cache = RangeCache(tmp_path, 1e6)
    cache.put("a", b"content")
    (path,) = files(tmp_path)
    for bad in (b"", b"con", path.read_bytes().replace(b"t", b"T", 1)):
        path.write_bytes(bad)
        assert cache.get("a") is None
    cache.put("a", b"content")
    assert cache.get("a") == b"content"
    # What is too large for the folder is not kept.
    cache.put("b", bytes(200_000))
    assert cache.get("b") is None
