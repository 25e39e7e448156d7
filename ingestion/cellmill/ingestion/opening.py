"""Files as tasks see them: opened once for all chunks of a source, and never another file than was planned."""

from __future__ import annotations

import threading

from cellmill.errors import SourceError
from cellmill.ingestion.plan import SourcePlan
from cellmill.ingestion.sources import Place, Source
from cellmill.ingestion.sources.joined import open_joined


class _Open(threading.local):
    """The source that this thread has open, by location and stamp; one at most."""

    def __init__(self) -> None:
        self.sources: dict[str, Source] = {}


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
        source = open_joined(plan.format, Place(plan.location), plan.dataset, plan.config)
        if source.stamp != plan.stamp:
            source.close()
            raise SourceError(
                "The file was changed while it was being read.", where=plan.url, fix="Run again when it is complete."
            )
        _here.sources[key] = source
    return _here.sources[key]


def close_source() -> None:
    """Close what is open."""
    while _here.sources:
        _here.sources.popitem()[1].close()
