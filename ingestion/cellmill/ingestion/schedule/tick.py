"""One tick, under the lock: look, ingest what is new or changed, take out what is to go, run the hook."""

from __future__ import annotations

import traceback
from datetime import datetime, timedelta
from typing import Any

from cellmill.atlas import Atlas
from cellmill.errors import CellmillError, LockError, SourceError
from cellmill.ingestion.schedule.cron import next_time
from cellmill.ingestion.schedule.decide import DUE, Decision
from cellmill.ingestion.schedule.hook import HELD, run_hook
from cellmill.ingestion.schedule.landing import land, take_out
from cellmill.ingestion.schedule.report import Landing, TickReport, Trouble, source_lines
from cellmill.ingestion.schedule.setting import Setting
from cellmill.ingestion.schedule.state import Failure, Landed, Owed, Record
from cellmill.lock import Lock

_VANISHED = "vanished sources"


class Tick:
    """One tick.

    Parameters
    ----------
    setting
        What it shares with others.
    lock
        Held by this process; it is checked before every change.
    due
        When it was to begin.
    """

    def __init__(self, setting: Setting, lock: Lock, due: datetime) -> None:
        self._its, self._lock = setting, lock
        self._config, self._clock = setting.config, setting.clock
        self._state = setting.store.load()
        self._cut_off = set(self._state.pending)
        self._decisions: list[Decision] = []
        self._retries: list[tuple[int, datetime]] = []
        self.report = TickReport(due=due, started=setting.clock.now())

    def run(self) -> TickReport:
        """Do it, and return what was done.

        Raises
        ------
        LockError
            Another process took the lock; what was committed before stays.
        """
        self._show("looking at the sources")
        self._decisions, holdings = self._its.look(self._state)
        by_kind = {kind: [one for one in self._decisions if one.kind == kind] for kind in (*DUE, "waiting", "vanished")}
        due = self._settled([one for one in self._decisions if one.kind in DUE])
        gone = [one.key for one in by_kind["vanished"]]
        self._tell(
            snapshot=holdings.snapshot,
            vanished=tuple(gone),
            withdrawn=tuple(one.key for one in self._decisions if one.kind == "withdrawn"),
            waiting=len(by_kind["waiting"]),
            unchanged=sum(one.kind == "unchanged" for one in self._decisions),
        )
        self._note_lines()
        going = gone if self._config.vanished.policy == "remove" else []
        if due or going:
            self._save(pending=(*(one.key for one in due), *going))
        # What goes, goes first: a file that was renamed is refused while the atlas has it under its old name.
        self._vanish(gone)
        for number, one in enumerate(due, 1):
            self._show(f"{number} of {len(due)}: {one.key} ({one.kind})")
            self._land(one)
        # What failed may have done so after its commit.
        left = self._state.failing
        if (self._state.pending, self._state.withdrawals) != (left, holdings.withdrawals):
            self._save(pending=left, withdrawals=holdings.withdrawals)
        self._run_hook()
        changed = any(landing.committed for landing in self.report.landed) or bool(self.report.removed)
        early = [moment for failures, moment in self._retries if failures <= self._config.retries.attempts]
        waiting = [record.failure for record in self._state.sources.values() if record.failure]
        early += [one.retry_after for one in waiting if one.failures <= self._config.retries.attempts]
        self._tell(
            outcome="changed" if changed else "unchanged", ended=self._clock.now(), retry=min(early, default=None)
        )
        return self.report

    def stop(self) -> None:
        """Say that a signal ended the tick; what was committed stays, and the next tick does the rest."""
        self._tell(outcome="stopped", detail="by a signal", ended=self._clock.now())
        self._log("stopped", "stopped by a signal; what was committed stays, the next tick does the rest")
        self.show_end(state="stopped")

    def show_end(self, **changes: Any) -> None:
        """Put the end of the tick on the board."""
        lines = source_lines(self._state, self._decisions)
        status = self._its.board.status.with_tick(self.report)
        self._its.board.update(self._clock.now(), sources=lines, history=status.history, doing="", **changes)

    def _settled(self, due: list[Decision]) -> list[Decision]:
        """Leave out what changes while one looks."""
        if not due or not self._config.settle_s:
            return due
        self._show(f"waiting {self._config.settle_s:g} s for {len(due)} sources to settle")
        self._clock.sleep_until(self._clock.now() + timedelta(seconds=self._config.settle_s))
        still = [one for one in due if one.found is not None and one.found.is_still()]
        settling = tuple(one.key for one in due if one not in still)
        if settling:
            self._tell(settling=settling)
            self._retries.append((1, self._after(1)))
            self._log(
                "settling", f"{len(settling)} sources are still being written, first {settling[0]}", sources=settling
            )
        return still

    def _land(self, one: Decision) -> None:
        found = one.found
        assert found is not None
        self._lock.check()
        record = self._state.sources.get(one.key, Record(pattern=found.pattern))
        now = self._clock.now()
        try:
            landed, committed = land(
                self._config.ingest, found, self._lock.check, self._its.log.directory / "runs", now
            )
            if record.landed is not None and record.landed.url != landed.url:
                self._take_out([record.landed], f"{landed.dataset}: superseded by {found.stamp}")
        except LockError:
            raise
        except CellmillError as error:
            self._fail(one, record, error.as_dict())
            return
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one source, the others have to land
            what = f"{type(error).__name__}: {error}"
            self._fail(one, record, {"kind": "unexpected", "what": what, "where": found.url, "fix": ""}, error)
            return
        landing = Landing(
            source=one.key,
            dataset=landed.dataset,
            cells=landed.cells,
            hidden=landed.hidden,
            snapshot=landed.snapshot,
            committed=committed or one.key in self._cut_off,
        )
        self._save(
            sources={**self._state.sources, one.key: Record(pattern=found.pattern, landed=landed)},
            snapshot=landed.snapshot,
            owed=self._owing(landed.dataset) if landing.committed else self._state.owed,
        )
        self._tell(landed=(*self.report.landed, landing), snapshot=landed.snapshot)
        how = "is in" if committed else "was already in"
        hidden = f" ({landed.hidden:,} more are hidden as duplicates)" if landed.hidden else ""
        text = f"{one.key}: {landed.cells:,} cells{hidden}, data set {landed.dataset}, {how} snapshot {landed.snapshot}"
        self._log("landed", text, kind=one.kind, reason=one.reason, **landing.model_dump(mode="json"))

    def _fail(self, one: Decision, record: Record, error: dict[str, str], cause: Exception | None = None) -> None:
        found, before = one.found, record.failure
        assert found is not None
        same = before is not None and (before.stamp, before.settings) == (found.stamp, found.settings)
        failures = before.failures + 1 if before is not None and same else 1
        failure = Failure(
            stamp=found.stamp,
            settings=found.settings,
            error=error,
            failures=failures,
            retry_after=self._after(failures),
            time=self._clock.now(),
        )
        updated = record.model_copy(update={"failure": failure})
        self._save(sources={**self._state.sources, one.key: updated})
        self._trouble(one.key, error, failures, failure.retry_after, cause)

    def _note_lines(self) -> None:
        """Report what cannot be looked at; it is tried again as sources are."""
        failed = {one.key: one for one in self._decisions if one.kind == "failed"}
        for key in [key for key in self._its.failures if key not in failed]:
            del self._its.failures[key]
        for key, one in failed.items():
            assert one.error is not None
            self._its.failures[key] += 1
            after = self._after(self._its.failures[key])
            self._retries.append((self._its.failures[key], after))
            self._trouble(key, one.error.as_dict(), self._its.failures[key], after)

    def _vanish(self, gone: list[str]) -> None:
        sources = dict(self._state.sources)
        known = {key: record.landed for key, record in sources.items() if record.landed is not None}
        landed = [known[key] for key in gone if key in known]
        for key in gone:
            if key not in known:
                del sources[key]
        if landed and self._config.vanished.policy == "remove":
            if len(landed) > self._config.vanished.most * len(known):
                error = SourceError(
                    f"{len(landed)} of {len(known)} sources have vanished; so many are not removed at once.",
                    where=self._config.name,
                    fix="Is a disk missing? If they shall go, raise `vanished.most` for one run.",
                )
                self._trouble(_VANISHED, error.as_dict(), 1, None)
            else:
                names = ", ".join(sorted({source.dataset for source in landed}))
                changed = self._take_out(landed, f"{self._config.name}: vanished sources of {names}")
                removed = tuple(key for key in gone if key in known)
                for key in removed:
                    del sources[key]
                self._tell(removed=removed)
                if changed or self._cut_off & set(gone):
                    owed = self._owing(*(source.dataset for source in landed))
                    self._state = self._state.model_copy(update={"owed": owed})
        if sources != self._state.sources:
            self._save(sources=sources)

    def _take_out(self, sources: list[Landed], message: str) -> bool:
        if not self._its.storage.exists("atlas.json"):
            return False
        self._lock.check()
        atlas = Atlas.open(self._its.storage.url)
        version, lost = take_out(atlas, sources, message, self._config.ingest.duplicates, self._lock.check)
        self._state = self._state.model_copy(update={"snapshot": version})
        self._tell(snapshot=version)
        if lost:
            self._log("removed", f"{message}: {lost:,} cells are not in snapshot {version}", snapshot=version)
        return lost > 0

    def _owing(self, *datasets: str) -> Owed | None:
        if self._config.hook is None:
            return None
        before = self._state.owed.datasets if self._state.owed else ()
        return Owed(datasets=tuple(dict.fromkeys((*before, *datasets))))

    def _run_hook(self) -> None:
        owed, hook = self._state.owed, self._config.hook
        if owed is None or hook is None:
            return
        if owed.retry_after is not None and self._clock.now() < owed.retry_after:
            self._retries.append((owed.failures, owed.retry_after))
            return
        self._lock.check()
        self._show("running the hook")
        facts = {
            "atlas": self._its.storage.url,
            "snapshot": str(self._state.snapshot),
            "datasets": ",".join(owed.datasets),
            "schedule": self._config.name,
        }
        log = self._its.log.directory / "hooks" / f"{self._clock.now():%Y%m%dT%H%M%SZ}-{self._state.number}.log"
        result = run_hook(hook, facts, log, self._its.log.directory / HELD)
        failures = 0 if result.ok else owed.failures + 1
        after = None if result.ok else self._after(failures)
        update = {"failures": failures, "retry_after": after}
        self._save(owed=None if result.ok else owed.model_copy(update=update))
        if after is not None:
            self._retries.append((failures, after))
        self._tell(hook=result)
        self._log("hook", f"hook {result.outcome}: {' '.join(result.command)}", **result.model_dump(mode="json"))

    def _after(self, failures: int) -> datetime:
        return self._clock.now() + timedelta(seconds=self._config.retries.pause(failures, self._its.rng))

    def _trouble(
        self,
        key: str,
        error: dict[str, str],
        failures: int,
        after: datetime | None,
        cause: Exception | None = None,
    ) -> None:
        trouble = Trouble(source=key, error=error, failures=failures, retry_after=after)
        self._tell(failed=(*self.report.failed, trouble))
        more = {"traceback": "".join(traceback.format_exception(cause))} if cause else {}
        self._log("failed", f"{key}: {error['what']}", **trouble.model_dump(mode="json"), **more)

    def _save(self, **changes: Any) -> None:
        self._lock.check()
        self._state = self._its.store.save(self._state.model_copy(update=changes))

    def _tell(self, **changes: Any) -> None:
        self.report = self.report.model_copy(update=changes)

    def _show(self, doing: str) -> None:
        board = self._its.board
        history = board.status.with_tick(self.report).history
        first, now = not self._decisions, self._clock.now()
        board.update(
            now,
            write=first,
            state="running",
            doing=doing,
            owner=self._lock.holder.owner,
            next=next_time(self._config.cron, self._config.zone, now),
            history=history,
            sources=source_lines(self._state, self._decisions),
        )

    def _log(self, event: str, text: str, **facts: Any) -> None:
        self._its.log.write(self._clock.now(), event, text, **facts)
