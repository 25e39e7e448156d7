"""What a schedule remembers between ticks: numbered files in the atlas, each written once."""

from __future__ import annotations

import re
from datetime import datetime

from pydantic import Field, ValidationError

from cellmill.config import Config
from cellmill.errors import IntegrityError, LockError
from cellmill.storage import Storage

_FILE = re.compile(r"\d{8}\.json")
_KEPT = 10


class Landed(Config):
    """A source as it is in the atlas.

    Attributes
    ----------
    stamp, settings
        Fingerprint of the source before it was read, and of what the configuration said about it.
    dataset, url, source_digest
        What the catalog calls it.
    snapshot, cells, hidden, time
        The commit that holds it, its cells then, those hidden as duplicates, and when.
    """

    stamp: str
    settings: str
    dataset: str
    url: str
    source_digest: str
    snapshot: int
    cells: int
    hidden: int
    time: datetime


class Failure(Config):
    """Why a source did not land, the last time it was tried.

    Attributes
    ----------
    stamp, settings
        As in `Landed`; when one of them changes the source is tried again at once.
    error
        Kind, what, where and fix.
    failures
        How often in a row.
    retry_after
        Not before this time.
    """

    stamp: str
    settings: str
    error: dict[str, str]
    failures: int
    retry_after: datetime
    time: datetime


class Record(Config):
    """What is known of one source.

    Attributes
    ----------
    pattern
        The line of the configuration that found it.
    landed, failure
        Either, both (a newer version failed) or none of them.
    """

    pattern: str
    landed: Landed | None = None
    failure: Failure | None = None


class Owed(Config):
    """A hook that has to be run: the atlas was changed, and no hook has succeeded since.

    Attributes
    ----------
    datasets
        Those that were changed.
    failures, retry_after
        How often it failed in a row, and when it is tried again.
    """

    datasets: tuple[str, ...]
    failures: int = 0
    retry_after: datetime | None = None


class State(Config):
    """Everything that is remembered.

    Attributes
    ----------
    number
        Of the file.
    snapshot
        The newest that this schedule committed or met.
    pending
        Sources that the tick which wrote this was about to ingest, or failed to. Where the next one finds such a source
        in the atlas, that tick was killed, or failed, after its commit.
    owed
        A hook that has to be run.
    withdrawals
        Those that held at the end of the last tick.
    sources
        By URL without secrets.
    """

    number: int = 0
    snapshot: int = 0
    pending: tuple[str, ...] = ()
    owed: Owed | None = None
    withdrawals: tuple[int, ...] = ()
    sources: dict[str, Record] = Field(default_factory=dict)

    @property
    def failing(self) -> tuple[str, ...]:
        """Sources that failed the last time they were tried."""
        return tuple(key for key, record in self.sources.items() if record.failure is not None)


class StateStore:
    """Reads and writes the state of one schedule below ``schedule/NAME/state``.

    Parameters
    ----------
    storage
        The atlas's.
    name
        The schedule's.
    """

    def __init__(self, storage: Storage, name: str) -> None:
        self._storage = storage
        self._folder = f"schedule/{name}/state"

    def load(self) -> State:
        """Return the newest state, an empty one before the first tick.

        Raises
        ------
        IntegrityError
            The newest file is damaged.
        """
        numbers = self._numbers()
        if not numbers:
            return State()
        key = self._key(numbers[-1])
        try:
            return State.model_validate_json(self._storage.get(key))
        except ValidationError as error:
            raise IntegrityError(
                "The state of the schedule is damaged.",
                where=self._storage.join(key),
                fix="Delete the file: what it knew more than the one before it is found again from the atlas.",
            ) from error

    def save(self, state: State) -> State:
        """Write a state as the next one.

        Returns
        -------
        State
            With its new number.

        Raises
        ------
        LockError
            Another process has written one since this one was read.
        """
        newer = state.model_copy(update={"number": state.number + 1})
        key = self._key(newer.number)
        content = newer.model_dump_json(indent=1).encode()
        # An answer may be lost and the request repeated: what is there then is our own.
        if not self._storage.put_if_absent(key, content) and self._storage.get(key) != content:
            raise LockError(
                "Another process has written the schedule's state.",
                where=self._storage.join(key),
                fix="Nothing was lost: its tick goes on from what this one committed.",
            )
        for number in self._numbers()[:-_KEPT]:
            self._storage.delete(self._key(number))
        return newer

    def _numbers(self) -> list[int]:
        keys = (key.rpartition("/")[2] for key in self._storage.list(self._folder))
        return sorted(int(key.removesuffix(".json")) for key in keys if _FILE.fullmatch(key))

    def _key(self, number: int) -> str:
        return f"{self._folder}/{number:08d}.json"
