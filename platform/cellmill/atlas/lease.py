"""Leases: what running processes are about to use, so that the garbage collection lets it be.

``leases/<id>.json`` says who works, until when, and on what. Its owner renews it in the background, and a lease that is
not renewed expires; on a local disk it ends with its owner. A collection has a lease, too. Writers and collections
exclude each other because each first writes its own lease and then looks for those of others: of two that start at once
at least one sees the other.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import TracebackType
from typing import Literal

from obstore.exceptions import BaseError
from pydantic import ValidationError

from cellmill.config import Config
from cellmill.errors import CellmillError, LockError, SourceError
from cellmill.process import Process, owner
from cellmill.storage import Storage

FOLDER = "leases"
TTL_S = 120.0
_BEATS = 6
_POLL_S = 0.1

Kind = Literal["write", "commit", "collect"]


class LeaseRecord(Config):
    """A lease as others see it.

    Attributes
    ----------
    id
        Its file is ``leases/<id>.json``.
    kind
        ``write`` uses what `names` says; ``commit`` may use anything; ``collect`` deletes.
    owner
        For people: machine and process.
    process
        Tells others on the same machine that the owner has died; None where it is not known.
    expires
        Seconds since 1970, by the owner's clock.
    names
        Beginnings of the keys that the owner may still commit.
    """

    id: str
    kind: Kind
    owner: str
    process: Process | None
    expires: float
    names: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Where it is, relative to the atlas."""
        return f"{FOLDER}/{self.id}.json"

    def has_ended(self, storage: Storage, now: float) -> bool:
        """Return whether it was not renewed in time, or its owner, who wrote to this machine's disk, has died."""
        if self.expires < now:
            return True
        # An object store may yet do what it was asked for by a process that is dead.
        return storage.is_local and self.process is not None and self.process.has_died()

    def covers(self, key: str) -> bool:
        """Return whether the owner may still use a file."""
        return self.kind == "commit" or (self.kind == "write" and key.startswith(self.names))


class Lease:
    """A lease of this process, as a context: it is renewed in the background and given back at the end.

    Parameters
    ----------
    storage
        The atlas's storage.
    kind
        What for.
    names
        Beginnings of keys, for ``write``.
    ttl_s
        Seconds after which it expires unless it is renewed.
    clock
        Seconds since 1970.
    """

    def __init__(
        self,
        storage: Storage,
        kind: Kind,
        names: Iterable[str] = (),
        *,
        ttl_s: float = TTL_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._storage, self._ttl_s, self._clock = storage, ttl_s, clock
        self._stop = threading.Event()
        self._beat: threading.Thread | None = None
        self.record = LeaseRecord(
            id=secrets.token_hex(8),
            kind=kind,
            owner=owner(),
            process=Process.this(),
            expires=clock() + ttl_s,
            names=tuple(names),
        )

    def check(self) -> None:
        """Make sure that the lease still holds.

        Raises
        ------
        LockError
            It was not renewed in time, and a collection did not wait for it.
        """
        if self._storage.exists(lost_key(self.record.id)):
            raise LockError(
                "This process was paused for so long that files it wrote may have been collected as garbage.",
                where=self._storage.join(self.record.key),
                fix="Nothing was committed. Run again.",
            )

    def __enter__(self) -> Lease:
        self._write()
        try:
            self._wait_for_collections()
        except BaseException:
            self._storage.delete(self.record.key)
            raise
        self._beat = threading.Thread(target=self._renew_for_ever, name=f"lease {self.record.id}", daemon=True)
        self._beat.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._beat is not None:
            self._beat.join()
        with suppress(CellmillError, BaseError, OSError):  # where the store does not answer, the lease expires
            self._storage.delete(self.record.key)

    def _wait_for_collections(self) -> None:
        """Wait until nothing is being deleted: what is found from then on stays until this lease ends."""
        if self.record.kind == "collect":
            return
        last = self._clock()
        while self._is_collected():
            if self.record.kind == "commit":
                # A collection waits for the commits that it sees: of the two this one steps back.
                self._storage.delete(self.record.key)
                while self._is_collected():
                    time.sleep(_POLL_S)
                self._renew()
            elif self._clock() - last > self._ttl_s / _BEATS:
                self._renew()
                last = self._clock()
            else:
                time.sleep(_POLL_S)

    def _is_collected(self) -> bool:
        return any(lease.kind == "collect" for lease in live_leases(self._storage, self._clock()))

    def _renew_for_ever(self) -> None:
        while not self._stop.wait(self._ttl_s / _BEATS):
            try:
                self._renew()
            except LockError:
                return  # whoever commits something will find out by `check`
            except (CellmillError, BaseError, OSError):
                continue  # the store may answer the next time

    def _renew(self) -> None:
        self.check()
        self.record = self.record.model_copy(update={"expires": self._clock() + self._ttl_s})
        self._write()

    def _write(self) -> None:
        self._storage.put(self.record.key, self.record.model_dump_json().encode())


def lost_key(number: str) -> str:
    """Return where a collection writes that it did not wait for an expired lease."""
    return f"{FOLDER}/{number}.lost"


def all_leases(storage: Storage) -> list[LeaseRecord]:
    """Return all leases, expired ones included."""
    found = []
    for key in storage.list(FOLDER):
        try:
            found.append(LeaseRecord.model_validate_json(storage.get(key)))
        except SourceError:
            continue  # given back since
        except ValidationError:
            if key.endswith(".json"):
                # Unreadable: nobody knows what it covers, so it covers everything, for as long as the file is there.
                number = key.rpartition("/")[2].removesuffix(".json")
                found.append(LeaseRecord(id=number, kind="commit", owner="unknown", process=None, expires=float("inf")))
    return found


def await_commits(storage: Storage, wait_s: float, clock: Callable[[], float] = time.time) -> LeaseRecord | None:
    """Wait until no commit is under way; return one that still is after `wait_s` seconds."""
    deadline = time.monotonic() + wait_s
    while busy := [lease for lease in live_leases(storage, clock()) if lease.kind == "commit"]:
        if time.monotonic() > deadline:
            return busy[0]
        time.sleep(_POLL_S)
    return None


def live_leases(storage: Storage, now: float) -> list[LeaseRecord]:
    """Return the leases that have not ended."""
    return [lease for lease in all_leases(storage) if not lease.has_ended(storage, now)]
