import errno
import os
import pickle
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from obstore.exceptions import GenericError, NotSupportedError
from obstore.store import MemoryStore

from cellmill.errors import ConfigError, SourceError, StorageError
from cellmill.remote_store import EmptyFileError, fetch
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


class OfAzure:
    """A store that knows no ranges from the end, and that names a part of an empty file strangely."""

    def __init__(self) -> None:
        self.store = MemoryStore()

    def head(self, key: str) -> Any:
        return self.store.head(key)

    def get(self, key: str, options: Any) -> Any:
        if "suffix" in options["range"]:
            raise NotSupportedError("Azure does not support suffix range requests.")
        if not self.store.head(key)["size"]:
            raise GenericError('Failed to parse value for CONTENT_RANGE header: "bytes 0--1/0"')
        return self.store.get(key, options=options)


def test_ends_of_files_where_no_ranges_from_the_end_are_known() -> None:
    store = OfAzure()
    store.store.put("a", b"0123456789")
    store.store.put("empty", b"")
    assert [fetch(store, "a", {"suffix": n}) for n in (3, 10, 99)] == [b"789", b"0123456789", b"0123456789"]
    with pytest.raises(EmptyFileError):
        fetch(store, "empty", {"suffix": 3})


def test_travels_between_processes(tmp_path: Path) -> None:
    storage = pickle.loads(pickle.dumps(Storage.open(tmp_path)))
    storage.put("a", b"1")
    assert (tmp_path / "a").read_bytes() == b"1"


def test_half_written_files_are_no_files(tmp_path: Path) -> None:
    storage = Storage.open(tmp_path)
    storage.put_parts("a/b", (bytes([i]) * 3 for i in range(2)))
    (tmp_path / "a/c.0123.partial").write_bytes(b"ha")
    assert storage.list() == ["a/b"]
    assert storage.get("a/b") == b"\0\0\0\1\1\1"
    storage.put_file("a/d", tmp_path / "a/b")
    assert storage.get_ranges("a/d", [4, 0, 2], [6, 0, 5]) == [b"\1\1", b"", b"\0\1\1"]

    def breaks() -> Iterator[bytes]:
        yield b"some"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        storage.put_parts("a/b", breaks())
    assert storage.get("a/b") == b"\0\0\0\1\1\1"
    assert len(list((tmp_path / "a").iterdir())) == 3


def test_a_folder_that_another_process_deletes_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage.open(tmp_path)
    left = [1]
    real = os.replace

    def replace(source: Path, target: Path) -> None:
        if left:
            left.pop()
            shutil.rmtree(tmp_path / "a")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    storage.put("a/b", b"1")
    assert storage.get("a/b") == b"1"
    left.append(1)
    with pytest.raises(StorageError, match="Another process deleted"):
        storage.put_parts("a/b", [b"1"])


def test_a_full_disk_and_a_locked_one_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage.open(tmp_path)
    for number, told in ((errno.ENOSPC, "no space"), (errno.EROFS, "may not be written"), (errno.EIO, "disk")):

        def fails(*_: object, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", fails)
            patch.setattr(os, "link", fails)
            with pytest.raises(StorageError, match=told):
                storage.put("a", b"1")
            with pytest.raises(StorageError, match=told):
                storage.put_if_absent("a", b"1")
    assert not list(tmp_path.iterdir())
