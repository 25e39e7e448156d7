"""What a tick did, and where the schedule stands: the objects behind the log, the status page and ``--json``."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from cellmill.config import Config
from cellmill.ingestion.schedule.decide import Decision
from cellmill.ingestion.schedule.hook import HookResult
from cellmill.ingestion.schedule.state import State

_HISTORY = 50


class Landing(Config):
    """A source that was ingested, its cells in the snapshot, and those hidden as duplicates."""

    source: str
    dataset: str
    cells: int
    hidden: int
    snapshot: int
    committed: bool


class Trouble(Config):
    """A source, a line of the configuration or a whole tick that failed."""

    source: str
    error: dict[str, str]
    failures: int = 1
    retry_after: datetime | None = None


class TickReport(Config):
    """What one tick did.

    Attributes
    ----------
    due, started, ended
        When it was to begin, began, and ended.
    outcome
        ``changed``: the atlas has a new snapshot; ``unchanged``; ``failed``: the tick as a whole did, and is tried
        again; ``skipped``: another run was under way; ``stopped``: by a signal.
    detail
        For people.
    snapshot
        The newest at the end.
    landed, failed
        Sources that were ingested, and sources that were not.
    vanished, removed, withdrawn
        Sources that are there no more; those of them that were taken out; sources that somebody else took out.
    settling
        Sources that somebody is still writing.
    unchanged, waiting
        How many sources were left alone, and how many that failed a short while ago were.
    hook
        What the hook did, if one was run.
    retry
        When something that failed is tried again without waiting for the next tick.
    """

    due: datetime
    started: datetime
    ended: datetime | None = None
    outcome: Literal["running", "changed", "unchanged", "failed", "skipped", "stopped"] = "running"
    detail: str = ""
    snapshot: int | None = None
    landed: tuple[Landing, ...] = ()
    failed: tuple[Trouble, ...] = ()
    vanished: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    withdrawn: tuple[str, ...] = ()
    settling: tuple[str, ...] = ()
    unchanged: int = 0
    waiting: int = 0
    hook: HookResult | None = None
    retry: datetime | None = None

    @property
    def is_well(self) -> bool:
        """Whether nothing failed."""
        return self.outcome != "failed" and not self.failed and (self.hook is None or self.hook.ok)

    def summary(self) -> str:
        """Return one line for people."""
        if self.outcome in ("skipped", "failed", "stopped"):
            return f"{self.outcome}: {self.detail}"
        counts = {
            "landed": len(self.landed),
            "failed": len(self.failed),
            "vanished": len(self.vanished),
            "removed": len(self.removed),
            "withdrawn": len(self.withdrawn),
            "being written": len(self.settling),
            "waiting": self.waiting,
            "unchanged": self.unchanged,
        }
        told = ", ".join(f"{n} {name}" for name, n in counts.items() if n) or "no sources"
        hook = "" if self.hook is None else f"; hook {self.hook.outcome}"
        at = "" if self.snapshot is None else f"; snapshot {self.snapshot}"
        return f"{told}{at}{hook}"


class SourceLine(Config):
    """One source on the status page."""

    source: str
    state: str
    dataset: str = ""
    cells: int | None = None
    snapshot: int | None = None
    landed: datetime | None = None
    error: str = ""
    retry_after: datetime | None = None


class Status(Config):
    """Where a schedule stands.

    Attributes
    ----------
    schedule, atlas, cron, timezone
        Which.
    state
        ``waiting`` for the next tick, ``running`` one, ``stopped``.
    doing
        What a running tick is at.
    owner
        Machine and process.
    next
        When the next tick is due.
    updated
        When this was written.
    sources, history
        One line a source, and the last ticks, newest first.
    """

    schedule: str
    atlas: str
    cron: str
    timezone: str
    state: Literal["waiting", "running", "stopped"] = "waiting"
    doing: str = ""
    owner: str = ""
    next: datetime | None = None
    updated: datetime
    sources: tuple[SourceLine, ...] = ()
    history: tuple[TickReport, ...] = ()

    def with_tick(self, report: TickReport) -> Status:
        """Return the status with a tick added to its history, or replaced in it while it runs."""
        older = self.history[1:] if self.history and self.history[0].started == report.started else self.history
        return self.model_copy(update={"history": (report, *older)[:_HISTORY]})


def source_lines(state: State, decisions: list[Decision]) -> tuple[SourceLine, ...]:
    """Return one line for each source, what needs a look first."""
    kinds = {decision.key: decision for decision in decisions}
    lines = []
    for key in {**state.sources, **kinds}:
        record, decision = state.sources.get(key), kinds.get(key)
        landed, failure = (record.landed, record.failure) if record else (None, None)
        special = decision is not None and decision.kind in ("vanished", "withdrawn", "failed")
        error = failure.error["what"] if failure else decision.reason if decision and special else ""
        name = decision.kind if decision and special else "failed" if failure else "landed" if landed else "due"
        lines.append(
            SourceLine(
                source=key,
                state=name,
                dataset=landed.dataset if landed else "",
                cells=landed.cells if landed else None,
                snapshot=landed.snapshot if landed else None,
                landed=landed.time if landed else None,
                error=error,
                retry_after=failure.retry_after if failure else None,
            )
        )
    return tuple(sorted(lines, key=lambda line: (line.state == "landed", line.source)))
