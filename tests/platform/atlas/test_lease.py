"""Leases: who works on what, and who waits for whom."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cellmill.atlas import Atlas
from cellmill.atlas.lease import FOLDER, Lease, LeaseRecord, all_leases, live_leases, lost_key
from cellmill.errors import LockError
from cellmill.storage import Storage


def test_a_lease_is_seen_renewed_and_given_back(tmp_path: Path) -> None:
    storage = Storage.open(tmp_path)
    with Lease(storage, "write", ["staging/a/"], ttl_s=0.3) as lease:
        (seen,) = live_leases(storage, time.time())
        assert seen.covers("staging/a/x")
        assert not seen.covers("staging/b/x")
        time.sleep(0.6)
        assert [found.id for found in live_leases(storage, time.time())] == [lease.record.id]
        assert all_leases(storage)[0].expires > seen.expires
    assert all_leases(storage) == []


def test_a_writer_waits_for_a_collection_and_a_commit_covers_everything(tmp_path: Path) -> None:
    storage = Storage.open(tmp_path)
    order = []

    def write() -> None:
        with Lease(storage, "commit") as lease:
            order.append("write")
            assert lease.record.covers("overlays/d/1.parquet")

    with Lease(storage, "collect"):
        thread = threading.Thread(target=write)
        thread.start()
        time.sleep(0.5)
        assert [found.kind for found in all_leases(storage)] == ["collect"]  # the writer has stepped back
        order.append("collected")
    thread.join()
    assert order == ["collected", "write"]


def test_a_lost_lease_forbids_the_commit(tmp_path: Path) -> None:
    atlas = Atlas.create(tmp_path)

    def plan(_: object) -> None:
        (mine,) = all_leases(atlas.storage)
        atlas.storage.put(lost_key(mine.id), b"")

    with pytest.raises(LockError, match="paused"):
        atlas.update(plan)
    assert atlas.snapshot().version == 0


def test_a_lease_that_cannot_be_read_covers_everything(tmp_path: Path) -> None:
    storage = Storage.open(tmp_path)
    storage.put(f"{FOLDER}/x.json", b"{")
    (found,) = live_leases(storage, time.time())
    assert found == LeaseRecord(id="x", kind="commit", owner="unknown", process=None, expires=float("inf"))


HOLD = """
import sys, time
from cellmill.atlas.lease import Lease
from cellmill.storage import Storage
with Lease(Storage.open(sys.argv[1]), sys.argv[2], ["staging/"]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("kind", ["write", "commit", "collect"])
def test_the_lease_of_a_process_that_was_killed_on_this_machine_keeps_nobody_waiting(tmp_path: Path, kind: str) -> None:
    storage = Storage.open(tmp_path)
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path), kind], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline().strip() == "held"
    assert [lease.kind for lease in live_leases(storage, time.time())] == [kind]
    child.kill()
    child.wait()
    assert live_leases(storage, time.time()) == []
    (dead,) = all_leases(storage)
    assert dead.expires > time.time()
    with Lease(storage, "commit"):
        pass
    # Of a process elsewhere nothing is known: only time ends its lease.
    assert dead.process is not None
    elsewhere = dead.model_copy(update={"process": dead.process.model_copy(update={"machine": "another"})})
    assert not elsewhere.has_ended(storage, time.time())
    assert elsewhere.has_ended(storage, dead.expires + 1)
    # An object store may do later what it was asked for.
    assert not dead.has_ended(Storage.open("s3://bucket/atlas"), time.time())
