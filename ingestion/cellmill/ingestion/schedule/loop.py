"""Ticks by the clock, one at a time; and one tick alone, for whatever else keeps the time."""

from __future__ import annotations

import random
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import NoReturn

from cellmill.cluster import leaving
from cellmill.errors import CellmillError, LockError
from cellmill.ingestion.schedule.board import Board
from cellmill.ingestion.schedule.clock import Clock, SystemClock
from cellmill.ingestion.schedule.config import ScheduleConfig
from cellmill.ingestion.schedule.cron import next_time, times_between
from cellmill.ingestion.schedule.decide import Decision
from cellmill.ingestion.schedule.report import TickReport
from cellmill.ingestion.schedule.server import serving
from cellmill.ingestion.schedule.setting import Setting
from cellmill.ingestion.schedule.tick import Tick
from cellmill.lock import acquire, find_holder


class Scheduler:
    """A schedule in this process.

    Parameters
    ----------
    config
        What is re-ingested, and when.
    clock
        The machine's by default.
    rng
        Draws the jitter of pauses.
    """

    def __init__(self, config: ScheduleConfig, clock: Clock | None = None, rng: random.Random | None = None) -> None:
        self._clock = clock or SystemClock()
        self._its = Setting(config, self._clock, rng or random.Random())
        self._config = config
        self._failures = 0

    @property
    def board(self) -> Board:
        """The status."""
        return self._its.board

    def dry_run(self) -> list[Decision]:
        """Return what a tick would do now; nothing is written, and no lock is taken."""
        return self._its.look(self._its.store.load())[0]

    def once(self) -> TickReport:
        """Run one tick now; if it fails as a whole it is tried again after a pause."""
        with _ended_by_signals():
            while True:
                report = self._attempt(self._clock.now())
                if report.outcome != "failed" or report.retry is None:
                    return report
                self._clock.sleep_until(report.retry)

    def run(self, on_tick: Callable[[TickReport], None] = lambda report: None) -> NoReturn:
        """Run a tick whenever one is due, until a signal ends the process.

        Parameters
        ----------
        on_tick
            Called after each with what it did.

        Raises
        ------
        ConfigError
            The port of the status page is taken.
        """
        cron, zone = self._config.cron, self._config.zone
        with _ended_by_signals(), serving(self._its.board, self._config.status.port) as url:
            where = f"; status on {url}" if url else ""
            now = self._clock.now()
            wake = now if self._is_behind() else next_time(cron, zone, now)
            try:
                self._log("started", f"{self._config.name}: next tick {wake.astimezone(zone):%Y-%m-%d %H:%M %Z}{where}")
                while True:
                    self._its.board.remember_next(wake, self._clock.now())
                    self._clock.sleep_until(wake)
                    report = self._attempt(wake)
                    on_tick(report)
                    now = self._clock.now()
                    for missed in times_between(cron, zone, wake, now):
                        on_tick(self._skip(missed, f"the tick of {wake.astimezone(zone):%H:%M} was still running"))
                    due = next_time(cron, zone, now)
                    wake = min(due, max(report.retry, now)) if report.retry else due
            except (KeyboardInterrupt, SystemExit):
                self._say_stopped()
                raise

    def _say_stopped(self) -> None:
        if self.board.status.state == "stopped":
            return  # the tick that was stopped has said so
        self._log("stopped", "stopped by a signal, between two ticks")
        holder = find_holder(self._its.storage, self._its.lock_name)
        if holder is None or holder.released:  # what another process does now is not ours to overwrite
            self.board.update(self._clock.now(), state="stopped", next=None)

    def _attempt(self, due: datetime) -> TickReport:
        """Run a tick, unless another process holds the lock; whatever happens, it is reported."""
        try:
            lock = acquire(
                self._its.storage,
                self._its.lock_name,
                ttl_s=self._config.lock_s,
                clock=lambda: self._clock.now().timestamp(),
            )
            if lock is None:
                holder = find_holder(self._its.storage, self._its.lock_name)
                return self._skip(due, f"{holder.owner if holder else 'another process'} holds the lock")
            # Between ticks lie hours: no cluster is held that long.
            with lock, leaving():
                tick = Tick(self._its, lock, due)
                self._log("tick", f"tick of {due.astimezone(self._config.zone):%Y-%m-%d %H:%M %Z}", lock=lock.number)
                try:
                    report = tick.run()
                except (KeyboardInterrupt, SystemExit):
                    # Ray's own handler has set an alarm that aborts the process three seconds after a SIGTERM.
                    signal.alarm(0)
                    tick.stop()
                    raise
                tick.show_end(state="waiting", next=next_time(self._config.cron, self._config.zone, self._clock.now()))
        except LockError as error:
            return self._failed(due, error, again=False)
        except Exception as error:  # noqa: BLE001 - a schedule that runs for years must outlive a bad night
            return self._failed(due, error, again=True)
        self._failures = 0
        self._log("ended", report.summary(), **report.model_dump(mode="json"))
        return report

    def _failed(self, due: datetime, error: Exception, *, again: bool) -> TickReport:
        self._failures += 1
        now = self._clock.now()
        retry = None
        if again and self._failures <= self._config.retries.attempts:
            retry = now + timedelta(seconds=self._config.retries.pause(self._failures, self._its.rng))
        what = str(error) if isinstance(error, CellmillError) else f"{type(error).__name__}: {error}"
        report = TickReport(due=due, started=now, ended=now, outcome="failed", detail=what, retry=retry)
        self._its.board.remember(report, now)
        trace = "" if isinstance(error, CellmillError) else "".join(traceback.format_exception(error))
        again_at = f"; again at {retry.astimezone(self._config.zone):%H:%M:%S}" if retry else ""
        self._log("tick failed", f"the tick failed: {what}{again_at}", traceback=trace, retry=retry)
        return report

    def _skip(self, due: datetime, why: str) -> TickReport:
        now = self._clock.now()
        report = TickReport(due=due, started=now, ended=now, outcome="skipped", detail=why)
        self._its.board.remember(report, now)
        self._log("skipped", f"the tick of {due.astimezone(self._config.zone):%Y-%m-%d %H:%M %Z} is skipped: {why}")
        return report

    def _is_behind(self) -> bool:
        """Return whether a tick was cut off, so that the first one does not wait for its time."""
        state = self._its.store.load()
        cut_off = set(state.pending) - set(state.failing)
        return bool(cut_off) or (state.owed is not None and self._config.hook is not None)

    def _log(self, event: str, text: str, **facts: object) -> None:
        self._its.log.write(self._clock.now(), event, text, **facts)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let SIGTERM end the process as Ctrl-C does: what is open is closed, and the lock given back."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    except SystemExit as ended:
        if ended.code == signal.SIGTERM:  # by the handler that Ray puts in the place of ours
            raise SystemExit(128 + signal.SIGTERM) from ended
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
