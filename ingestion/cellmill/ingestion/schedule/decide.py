"""What a tick has to do: a pure function of what is there, what is remembered, and what the atlas holds."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from cellmill.errors import CellmillError, SourceError
from cellmill.ingestion.schedule.state import Record, State
from cellmill.ingestion.schedule.survey import Found, Survey

Kind = Literal["new", "changed", "retry", "unchanged", "waiting", "vanished", "withdrawn", "failed"]
DUE: tuple[Kind, ...] = ("new", "changed", "retry")
"""What is ingested."""


@dataclass(frozen=True)
class Decision:
    """What happens to one source, or to one line of the configuration that cannot be followed.

    Attributes
    ----------
    kind
        ``waiting`` failed a short while ago, ``withdrawn`` was ingested and is not in the newest snapshot, ``failed``
        cannot be looked at.
    key
        The source's, or the line.
    reason
        For people.
    found, error
        What there is of it, and why it failed.
    """

    kind: Kind
    key: str
    reason: str
    found: Found | None = None
    error: CellmillError | None = None


@dataclass(frozen=True)
class Holdings:
    """What the newest snapshot of an atlas holds.

    Attributes
    ----------
    whole, incomplete
        (data set, digest) of sources with all cells that they may have, and of those that lack cells since a
        withdrawal which was lifted.
    withdrawals
        Numbers of the withdrawals that hold.
    snapshot
        Its number; None where there is no atlas yet.
    """

    whole: Set[tuple[str, str]] = frozenset()
    incomplete: Set[tuple[str, str]] = frozenset()
    withdrawals: tuple[int, ...] = ()
    snapshot: int | None = None


def decide(
    state: State, seen: Survey, atlas: Holdings, now: datetime, *, land_withdrawn: bool = False
) -> list[Decision]:
    """Return what to do with every source, those to be ingested in the order of the configuration.

    Parameters
    ----------
    state
        What is remembered.
    seen
        What there is.
    atlas
        What the newest snapshot holds.
    now
        The time.
    land_withdrawn
        Ingest again what somebody took out of the atlas.
    """
    decisions = [Decision("failed", line, error.what, error=error) for line, error in seen.failed.items()]
    for key, found in seen.found.items():
        decisions.append(_of_one(found, state.sources.get(key), atlas, now, land_withdrawn))
    for key, line in seen.missing.items():
        if key not in state.sources:
            error = SourceError("The file does not exist.", where=key, fix="Check the path.")
            decisions.append(Decision("failed", line, error.what, error=error))
    for key, record in state.sources.items():
        # A line that finds nothing at all tells of a disk that is not mounted, not of files that were deleted.
        if key not in seen.found and record.pattern not in seen.failed:
            decisions.append(Decision("vanished", key, "is there no more"))
    return decisions


def _of_one(found: Found, record: Record | None, atlas: Holdings, now: datetime, land_withdrawn: bool) -> Decision:
    if found.error is not None:
        return Decision("failed", found.key, found.error.what, found, found.error)
    landed, failure = (record.landed, record.failure) if record else (None, None)
    print_ = (found.stamp, found.settings)
    if failure is not None and (failure.stamp, failure.settings) == print_:
        if now < failure.retry_after:
            return Decision(
                "waiting", found.key, f"failed, tried again after {failure.retry_after:%Y-%m-%d %H:%M}", found
            )
        return Decision("retry", found.key, f"failed {failure.failures} times", found)
    if landed is None:
        return Decision("new", found.key, "not ingested before", found)
    if landed.settings != found.settings:
        return Decision("changed", found.key, "other settings", found)
    if landed.stamp != found.stamp:
        return Decision("changed", found.key, "other size, time or tag", found)
    mine = (landed.dataset, landed.source_digest)
    if mine in atlas.incomplete:
        return Decision("changed", found.key, "a withdrawal of its cells was lifted", found)
    if mine not in atlas.whole:
        reason = f"ingested in snapshot {landed.snapshot}, and taken out of the atlas since"
        return Decision("changed" if land_withdrawn else "withdrawn", found.key, reason, found)
    return Decision("unchanged", found.key, "", found)
