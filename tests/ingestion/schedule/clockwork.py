"""A clock that is turned by hand, and schedules to run by it."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cellmill.config import parse_config
from cellmill.ingestion.schedule.config import ScheduleConfig
from cellmill.ingestion.schedule.loop import Scheduler

START = datetime(2026, 3, 1, 2, 0, tzinfo=UTC)
DAY = timedelta(days=1)


class FakeClock:
    """Moves when it is told to, and when somebody sleeps; at its end a sleeper is interrupted."""

    def __init__(self, now: datetime = START, end: datetime | None = None) -> None:
        self.time, self.end = now, end
        self.slept: list[datetime] = []

    def now(self) -> datetime:
        return self.time

    def sleep_until(self, moment: datetime) -> None:
        if self.end is not None and moment > self.end:
            raise KeyboardInterrupt
        self.slept.append(moment)
        self.time = max(self.time, moment)


def schedule(atlas: Path | str, *paths: Path | str, **settings: Any) -> ScheduleConfig:
    sources = [{"path": str(path), "organism": "human", "licence": "CC0"} for path in paths]
    ingest = {"atlas": str(atlas), "sources": sources, "backend": "local", **settings.pop("ingest", {})}
    data = {"name": "nightly", "cron": "0 2 * * *", "ingest": ingest, "status": {"port": None}, "settle_s": 0}
    return parse_config(ScheduleConfig, data | settings, where="test")


def scheduler(config: ScheduleConfig, clock: FakeClock) -> Scheduler:
    return Scheduler(config, clock, random.Random(0))
