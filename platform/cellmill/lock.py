"""A lock that holds across machines: a chain of numbered files in the storage that it protects."""

from __future__ import annotations

import re
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

from obstore.exceptions import BaseError
from pydantic import ValidationError

from cellmill.config import Config
from cellmill.errors import CellmillError, IntegrityError, LockError, SourceError
from cellmill.process import Process, owner
from cellmill.storage import Storage

_FOLDER = "locks"
_FILE = re.compile(r"\d{8}\.json")
_KEPT = 10
"""Numbers that stay behind the newest, to see who held the lock before."""

_BEATS = 6
"""Renewals within the life of a lock: so many must be lost before it expires."""

_ATTEMPTS = 5


class Holder(Config):
    """Who holds or held a lock.

    Attributes
    ----------
    number
        Place in the chain.
    owner
        For people: machine and process.
    token
        Tells two takers of one number apart.
    process
        Tells a taker on the same machine that the holder has died.
    taken, expires
        Seconds since 1970 by the holder's clock.
    released
        Whether it was given back.
    """

    number: int
    owner: str
    token: str
    process: Process
    taken: float
    expires: float
    released: bool = False

    def is_free(self, now: float) -> bool:
        """Return whether another may take the lock: it was given back, has expired, or its holder is known dead."""
        return self.released or now > self.expires or self.process.has_died()


class Lock:
    """A lock that this process holds; get one with `acquire`.

    As a context it renews itself in the background, and is given back at the end. Expiry depends on clocks, so a holder
    that was paused, or whose clock differs, may be overtaken while it works. `check` does not depend on clocks: whoever
    calls it right before a change never makes one after another has taken the lock.

    Attributes
    ----------
    holder
        This process, as others see it.
    """

    def __init__(self, storage: Storage, name: str, holder: Holder, ttl_s: float, clock: Callable[[], float]) -> None:
        self.holder = holder
        self._storage, self._name, self._ttl_s, self._clock = storage, name, ttl_s, clock
        self._stop = threading.Event()
        self._beat: threading.Thread | None = None

    @property
    def number(self) -> int:
        """Place in the chain: it grows with every taker."""
        return self.holder.number

    def check(self) -> None:
        """Make sure that nobody has taken the lock since.

        Raises
        ------
        LockError
            Another process has.
        """
        last = _numbers(self._storage, self._name)[-1:]
        if last != [self.number]:
            raise LockError(
                "The lock was lost: another process took it, after this one had not renewed it in time.",
                where=self._storage.join(_key(self._name, last[0] if last else self.number)),
                fix="Nothing was changed. If the machine was not paused, raise the lock's time.",
            )

    def renew(self) -> None:
        """Put off the expiry.

        Raises
        ------
        LockError
            The lock is another's.
        """
        self.check()
        self._write(expires=self._clock() + self._ttl_s)

    def release(self) -> None:
        """Give the lock back; if it was lost there is nothing to do."""
        self._write(released=True)

    def _write(self, **update: object) -> None:
        self.holder = self.holder.model_copy(update=update)
        self._storage.put(_key(self._name, self.number), self.holder.model_dump_json().encode())

    def __enter__(self) -> Lock:
        self._beat = threading.Thread(target=self._renew_for_ever, name=f"lock {self._name}", daemon=True)
        self._beat.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._beat is not None:
            self._beat.join()
        with suppress(CellmillError, BaseError, OSError):  # where the store does not answer, the lock expires
            self.release()

    def _renew_for_ever(self) -> None:
        while not self._stop.wait(self._ttl_s / _BEATS):
            try:
                self.renew()
            except LockError:
                return  # whoever changes something will find out by `check`
            except (CellmillError, BaseError, OSError):
                continue  # the store may answer the next time


def acquire(
    storage: Storage, name: str, *, ttl_s: float = 120.0, clock: Callable[[], float] = time.time
) -> Lock | None:
    """Take a lock, or return None if another process holds it.

    The chain is ``locks/NAME/NNNNNNNN.json``. The last file says who holds the lock and until when; who finds it given
    back or expired creates the next one, which the storage lets only one process do.

    Parameters
    ----------
    storage
        Where the chain is: local disk or object store.
    name
        Name of the lock.
    ttl_s
        Seconds after which a lock that is not renewed expires. On the holder's own machine it need not: a dead process
        is seen at once.
    clock
        Seconds since 1970.

    Raises
    ------
    IntegrityError
        The last file of the chain cannot be read.
    """
    last = find_holder(storage, name)
    now = clock()
    if last is not None and not last.is_free(now):
        return None
    mine = Holder(
        number=last.number + 1 if last else 1,
        owner=owner(),
        token=secrets.token_hex(8),
        process=Process.this(),
        taken=now,
        expires=now + ttl_s,
    )
    key = _key(name, mine.number)
    if not storage.put_if_absent(key, mine.model_dump_json().encode()) and _read(storage, key).token != mine.token:
        return None
    numbers = _numbers(storage, name)
    if numbers[-1] != mine.number:
        # This process was slow: others took the number, gave it back and deleted it while it looked.
        storage.delete(key)
        return None
    for number in numbers[:-_KEPT]:
        storage.delete(_key(name, number))
    return Lock(storage, name, mine, ttl_s, clock)


def find_holder(storage: Storage, name: str) -> Holder | None:
    """Return who holds a lock, or held it last; None if nobody ever did.

    Raises
    ------
    IntegrityError
        The last file of the chain cannot be read.
    """
    for _ in range(_ATTEMPTS):
        numbers = _numbers(storage, name)
        if not numbers:
            return None
        try:
            return _read(storage, _key(name, numbers[-1]))
        except SourceError:
            continue  # deleted between the two calls: the chain has grown
    raise IntegrityError("The lock's files vanish while they are read.", where=storage.join(f"{_FOLDER}/{name}"))


def _read(storage: Storage, key: str) -> Holder:
    content = storage.get(key)
    try:
        return Holder.model_validate_json(content)
    except ValidationError as error:
        raise IntegrityError(
            "The file of a lock is damaged.",
            where=storage.join(key),
            fix="Make sure that nothing runs under the lock, then delete the file.",
        ) from error


def _numbers(storage: Storage, name: str) -> list[int]:
    keys = (key.rpartition("/")[2] for key in storage.list(f"{_FOLDER}/{name}"))
    return sorted(int(key.removesuffix(".json")) for key in keys if _FILE.fullmatch(key))


def _key(name: str, number: int) -> str:
    return f"{_FOLDER}/{name}/{number:08d}.json"
