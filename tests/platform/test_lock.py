"""The lock on disk and in an object store: one holder at a time, and never a change by one who lost it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from moto.server import ThreadedMotoServer

from cellmill.errors import IntegrityError, LockError
from cellmill.lock import Lock, acquire, find_holder
from cellmill.storage import Storage

HOLD = """
import sys, time
from cellmill.lock import acquire
from cellmill.storage import Storage
lock = acquire(Storage.open(sys.argv[1]), "tick", ttl_s=3600)
print("held" if lock else "refused", flush=True)
time.sleep(60)
"""


class Clock:
    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    running = ThreadedMotoServer(port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture(params=["disk", "s3"])
def storage(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Storage:
    if request.param == "disk":
        return Storage.open(tmp_path)
    endpoint = request.getfixturevalue("server")
    for key, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
    }.items():
        monkeypatch.setenv(key, value)
    bucket = f"locks-{tmp_path.name.replace('_', '-')}"
    requests.put(f"{endpoint}/{bucket}", timeout=10).raise_for_status()
    return Storage.open(f"s3://{bucket}/atlas")


def take(storage: Storage, clock: Clock, name: str = "tick") -> Lock:
    lock = acquire(storage, name, ttl_s=60, clock=clock)
    assert lock is not None
    return lock


def test_one_holds_it_until_it_is_given_back(storage: Storage) -> None:
    clock = Clock()
    first = take(storage, clock)
    assert acquire(storage, "tick", clock=clock) is None
    take(storage, clock, "another name")
    first.release()
    second = take(storage, clock)
    assert (first.number, second.number) == (1, 2)
    second.check()


def test_a_lock_that_is_not_renewed_expires_and_its_holder_is_fenced(storage: Storage) -> None:
    clock = Clock()
    first = take(storage, clock)
    clock.now += 59
    first.renew()
    clock.now += 59
    assert acquire(storage, "tick", clock=clock) is None
    clock.now += 2
    second = take(storage, clock)
    with pytest.raises(LockError, match="lost"):
        first.check()
    with pytest.raises(LockError):
        first.renew()
    first.release()
    second.check()
    assert find_holder(storage, "tick") == second.holder


def test_of_many_takers_at_once_one_wins(storage: Storage) -> None:
    clock = Clock()
    for _ in range(3):
        with ThreadPoolExecutor(8) as pool:
            found = [lock for lock in pool.map(lambda _: acquire(storage, "tick", clock=clock), range(8)) if lock]
        (winner,) = found
        winner.check()
        winner.release()


def test_a_slow_taker_does_not_take_a_number_that_was_used_and_deleted(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    take(storage, clock).release()
    stale = find_holder(storage, "tick")
    for _ in range(20):
        take(storage, clock).release()
    last = take(storage, clock)
    with monkeypatch.context() as patch:
        patch.setattr("cellmill.lock.find_holder", lambda *_: stale)
        assert acquire(storage, "tick", clock=clock) is None
    last.check()


def test_a_taker_whose_answer_was_lost_holds_the_lock(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    def written_but_refused(self: Storage, key: str, data: bytes) -> bool:
        self.put(key, data)
        return False

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "put_if_absent", written_but_refused)
        lock = take(storage, Clock())
    lock.check()


def test_as_a_context_it_renews_itself_and_is_given_back(tmp_path: Path) -> None:
    storage = Storage.open(tmp_path)
    lock = acquire(storage, "tick", ttl_s=0.3)
    assert lock is not None
    with lock:
        deadline = time.monotonic() + 10
        expiry = lock.holder.expires
        while lock.holder.expires == expiry and time.monotonic() < deadline:
            time.sleep(0.01)
        assert lock.holder.expires > expiry
        assert acquire(storage, "tick") is None
    assert acquire(storage, "tick") is not None


def test_a_holder_that_was_killed_on_this_machine_is_seen_at_once(tmp_path: Path) -> None:
    storage = Storage.open(tmp_path)
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline().strip() == "held"
    assert acquire(storage, "tick") is None
    child.kill()
    child.wait()
    lock = acquire(storage, "tick")
    assert lock is not None
    assert lock.number == 2


@pytest.mark.parametrize(
    ("error", "is_free"),
    [
        (PermissionError, False),
        (OSError, False),
        (FileNotFoundError, True),
        (ProcessLookupError, True),
    ],
)
def test_a_holder_that_cannot_be_seen_counts_as_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[OSError], is_free: bool
) -> None:
    storage, clock = Storage.open(tmp_path), Clock()
    holder = take(storage, clock).holder

    def unreadable(path: Any, *arguments: Any, **more: Any) -> Any:
        if str(path) == f"/proc/{holder.process.pid}/stat":
            raise error
        return open(path, *arguments, **more)

    monkeypatch.setattr("cellmill.process.open", unreadable, raising=False)
    assert holder.is_free(clock()) == is_free
    unseen = holder.process.model_copy(update={"born": None})
    assert not holder.model_copy(update={"process": unseen}).is_free(clock())


def test_a_damaged_lock_is_named(storage: Storage) -> None:
    storage.put("locks/tick/00000001.json", b"{}")
    with pytest.raises(IntegrityError, match="damaged") as caught:
        acquire(storage, "tick")
    assert "locks/tick/00000001.json" in caught.value.where
