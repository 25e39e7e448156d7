"""What all ticks of a schedule share."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

from cellmill.atlas import Atlas
from cellmill.atlas.withdrawals import active_withdrawals, is_current
from cellmill.ingestion.schedule import census
from cellmill.ingestion.schedule.board import Board
from cellmill.ingestion.schedule.clock import Clock
from cellmill.ingestion.schedule.config import ScheduleConfig
from cellmill.ingestion.schedule.decide import Decision, Holdings, decide
from cellmill.ingestion.schedule.run_log import RunLog
from cellmill.ingestion.schedule.state import State, StateStore
from cellmill.ingestion.schedule.survey import survey
from cellmill.storage import Storage


class Setting:
    """What all ticks of a schedule share.

    Parameters
    ----------
    config
        The schedule.
    clock
        Tells the time.
    rng
        Draws the jitter.
    """

    def __init__(self, config: ScheduleConfig, clock: Clock, rng: random.Random) -> None:
        self.config, self.clock, self.rng = config, clock, rng
        self.storage = Storage.open(config.ingest.atlas)
        self.store = StateStore(self.storage, config.name)
        self.log = RunLog(_directory(config, self.storage), config.zone)
        self.board = Board(config, self.storage, clock.now())
        self.failures: Counter[str] = Counter()
        """How often lines of the configuration failed in a row; those of sources are in the state."""

    @property
    def lock_name(self) -> str:
        """Name of the schedule's lock."""
        return f"schedule-{self.config.name}"

    def look(self, state: State) -> tuple[list[Decision], Holdings]:
        """Return what a tick would do now, and what the atlas holds; nothing is written.

        Raises
        ------
        ConfigError
            Two lines of the configuration find the same source.
        """
        holdings = self._holdings()
        seen = survey(self.config.ingest, lambda: census.read_releases(self.config.census_directory))
        # What a lifted withdrawal had taken whole left no trace in the snapshot.
        again = self.config.withdrawn == "land" or not set(state.withdrawals) <= set(holdings.withdrawals)
        return decide(state, seen, holdings, self.clock.now(), land_withdrawn=again), holdings

    def _holdings(self) -> Holdings:
        if not self.storage.exists("atlas.json"):
            return Holdings()
        snapshot = Atlas.open(self.storage.url).snapshot()
        active = {withdrawal.number for withdrawal in active_withdrawals(self.storage)}
        whole: set[tuple[str, str]] = set()
        incomplete: set[tuple[str, str]] = set()
        for part in (part for entry in snapshot.shards for part in entry.sources):
            (whole if is_current(part, active) else incomplete).add(part.key)
        return Holdings(whole, incomplete, tuple(sorted(active)), snapshot.version)


def _directory(config: ScheduleConfig, storage: Storage) -> Path:
    if config.output is not None:
        return config.output.absolute()
    name = config.name
    return storage.local_path(f"schedule/{name}") if storage.is_local else Path(f"schedule-{name}").absolute()
