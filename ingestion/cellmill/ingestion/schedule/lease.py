"""A lock that holds between processes and machines: numbered leases in the atlas's own storage.

A lease is ``lock/NNNNNN.json``, created by put-if-absent, so each number has one owner. The newest lease is the one in
force until it is released or expires; whoever finds it so tries to create the next number, and one of them succeeds.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread

from cellmill.config import Config
from cellmill.errors import ConflictError
from cellmill.ingestion.schedule.clock import Clock
from cellmill.storage import Storage


class Lease(Config):
    """One turn at the lock.

    Attributes
    ----------
    number
        Turns are numbered from 1; a later number supersedes an earlier one.
    owner
        Identity of the holder: never given twice.
    expires
        Unix time in seconds after which others may take over.
    released
        Whether the holder has finished.
    """

    number: int
    owner: str
    expires: float
    released: bool = False


class LeaseLock:
    """Mutual exclusion by numbered leases.

    Parameters
    ----------
    storage
        Where the leases are kept; every contender must see the same storage.
    prefix
        Folder of the leases in it.
    seconds
        How long a lease is good for without renewal; a killed holder blocks others for at most so long.
    clock
        Source of the time.
    """

    def __init__(self, storage: Storage, prefix: str, seconds: float, clock: Clock) -> None:
        self._storage, self._prefix, self._seconds, self._clock = storage, prefix, seconds, clock

    def newest(self) -> Lease | None:
        """Return the newest lease, whether in force or not."""
        keys = self._storage.list(self._prefix)
        return Lease.model_validate_json(self._storage.get(keys[-1])) if keys else None

    def acquire(self) -> Lease | None:
        """Take the lock, or return None if another holds it."""
        newest = self.newest()
        if newest is not None and not newest.released and newest.expires > self._clock.now():
            return None
        number = newest.number + 1 if newest else 1
        lease = Lease(number=number, owner=uuid.uuid4().hex, expires=self._clock.now() + self._seconds)
        if not self._storage.put_if_absent(self._key(number), _encode(lease)):
            return None
        if number > 2:
            self._storage.delete(self._key(number - 2))
        return lease

    def renew(self, lease: Lease) -> Lease:
        """Extend a lease.

        Raises
        ------
        ConflictError
            Another has taken over since.
        """
        self._still_newest(lease)
        renewed = lease.model_copy(update={"expires": self._clock.now() + self._seconds})
        self._storage.put(self._key(lease.number), _encode(renewed))
        return renewed

    def release(self, lease: Lease) -> None:
        """Give the lock back; a lease that was superseded meanwhile is left alone."""
        newest = self.newest()
        if newest is not None and newest.owner == lease.owner:
            self._storage.put(self._key(lease.number), _encode(lease.model_copy(update={"released": True})))

    @contextmanager
    def held(self, lease: Lease) -> Iterator[None]:
        """Renew the lease in the background while the block runs, and release it at the end."""
        done = Event()
        keeper = Thread(target=self._keep, args=(lease, done), daemon=True)
        keeper.start()
        try:
            yield
        finally:
            done.set()
            keeper.join()
            self.release(lease)

    def _keep(self, lease: Lease, done: Event) -> None:
        while not done.wait(self._seconds / 3):
            try:
                self.renew(lease)
            except ConflictError:
                return

    def _still_newest(self, lease: Lease) -> None:
        newest = self.newest()
        if newest is None or newest.owner != lease.owner:
            raise ConflictError(
                "Another process has taken over the lock.",
                where=self._storage.join(self._prefix),
                fix="Raise `lock_seconds` if runs are paused for longer than that.",
            )

    def _key(self, number: int) -> str:
        return f"{self._prefix}/{number:09d}.json"


def _encode(lease: Lease) -> bytes:
    return json.dumps(lease.model_dump()).encode()
