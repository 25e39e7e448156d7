"""Files as tasks see them: opened once for all chunks of a source, and never another file than was planned."""

from __future__ import annotations

import threading

from cellmill.errors import SourceError
from cellmill.ingestion.plan import SourcePlan
from cellmill.ingestion.sources import Place, Source
from cellmill.ingestion.sources.joined import open_joined


class _Open(threading.local):
    """The source that this thread has open, by location and stamp, one at most; and what its files were like before."""

    def __init__(self) -> None:
        self.sources: dict[str, Source] = {}
        self.stamps: list[str] = []


_here = _Open()


def open_source(plan: SourcePlan) -> Source:
    """Return a plan's file or folder, opened.

    Raises
    ------
    SourceError
        It cannot be opened, or has changed since it was planned.
    """
    assert plan.location is not None
    key = f"{plan.location} {plan.stamp} {plan.digest}"
    if key not in _here.sources:
        close_source()
        _here.stamps = _stamps(plan)
        source = open_joined(plan.format, Place(plan.location), plan.dataset, plan.config)
        if source.stamp != plan.stamp:
            source.close()
            raise _changed(plan)
        _here.sources[key] = source
    return _here.sources[key]


def check_unchanged(plan: SourcePlan) -> None:
    """Refuse what was read from the files that are open here, if they are not what they were when they were opened.

    Only files of this machine are looked at: they are read in place, and written over in place. Of remote ones, each
    answer is checked.

    Raises
    ------
    SourceError
        A file was changed.
    """
    if _stamps(plan) != _here.stamps:
        close_source()
        raise _changed(plan)


def _stamps(plan: SourcePlan) -> list[str]:
    places = [Place(path) for path in (plan.location, *(join.path for join in plan.config.join)) if path is not None]
    return [place.stamp for place in places if place.is_local]


def _changed(plan: SourcePlan) -> SourceError:
    return SourceError(
        "The file was changed while it was being read.", where=plan.url, fix="Run again when it is complete."
    )


def close_source() -> None:
    """Close what is open."""
    while _here.sources:
        _here.sources.popitem()[1].close()
