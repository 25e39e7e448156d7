import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from cellmill.errors import ConfigError, SourceError
from cellmill.storage import Storage


def claim(url: str, number: int) -> bool:
    return Storage.open(url).put_if_absent("claim", f"{number}".encode() * 10_000)


def test_put_if_absent_has_one_winner(tmp_path: Path) -> None:
    with ProcessPoolExecutor(4, mp_context=get_context("spawn")) as pool:
        wins = list(pool.map(claim, [str(tmp_path)] * 12, range(12)))
    assert sum(wins) == 1
    assert Storage.open(tmp_path).get("claim") == f"{wins.index(True)}".encode() * 10_000


def test_round_trip_and_listing(tmp_path: Path) -> None:
    storage = Storage.open(tmp_path / "new")
    assert storage.list() == []
    storage.put("a/b", b"1")
    storage.put("a/b", b"2")
    storage.put("a/c/d", b"3")
    assert storage.get("a/b") == b"2"
    assert storage.list("a") == ["a/b", "a/c/d"]
    assert storage.exists("a/b")
    assert not storage.exists("a")
    storage.delete("a/b")
    storage.delete("a/b")
    storage.delete_tree("a")
    assert storage.list() == []


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file"):
        Storage.open(tmp_path).get("missing")
    with pytest.raises(ConfigError, match="ftp"):
        Storage.open("ftp://host/x")
    with pytest.raises(ConfigError, match="local folder"):
        Storage.open("s3://bucket/prefix").local_path("a")
    with pytest.raises(ValueError, match="whole"):
        Storage.open(tmp_path).delete_tree("")


def test_travels_between_processes(tmp_path: Path) -> None:
    storage = pickle.loads(pickle.dumps(Storage.open(tmp_path)))
    storage.put("a", b"1")
    assert (tmp_path / "a").read_bytes() == b"1"
