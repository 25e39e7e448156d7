from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from cellmill.errors import ConflictError
from cellmill.ingestion.schedule.clock import SystemClock
from cellmill.ingestion.schedule.lease import LeaseLock
from cellmill.storage import Storage


class FakeClock:
    def __init__(self) -> None:
        self.time = 1000.0

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds


def lock(path: Path, clock: FakeClock | None = None) -> LeaseLock:
    return LeaseLock(Storage.open(path), "lock", 60, clock or SystemClock())


def contend(path: str) -> bool:
    return lock(Path(path)).acquire() is not None


def test_one_of_many_processes_gets_the_lock(tmp_path: Path) -> None:
    with ProcessPoolExecutor(4, mp_context=get_context("spawn")) as pool:
        assert sum(pool.map(contend, [str(tmp_path)] * 16)) == 1


def test_release_and_expiry_let_others_in(tmp_path: Path) -> None:
    clock = FakeClock()
    first, second = lock(tmp_path, clock), lock(tmp_path, clock)
    lease = first.acquire()
    assert lease is not None
    assert second.acquire() is None
    first.release(lease)
    taken = second.acquire()
    assert taken is not None
    assert taken.number == 2
    clock.sleep(30)
    taken = second.renew(taken)
    clock.sleep(45)
    assert first.acquire() is None
    clock.sleep(20)
    stolen = first.acquire()
    assert stolen is not None
    with pytest.raises(ConflictError, match="taken over"):
        second.renew(taken)
    second.release(taken)
    assert second.acquire() is None


def test_held_releases_when_the_block_fails(tmp_path: Path) -> None:
    own = lock(tmp_path)
    lease = own.acquire()
    assert lease is not None
    with pytest.raises(RuntimeError), own.held(lease):
        raise RuntimeError
    assert own.acquire() is not None
