"""Files as tasks see them: opened once for all chunks of a source, and never another file than was planned."""

from __future__ import annotations

from cellmill.errors import SourceError
from cellmill.ingestion.plan import SourcePlan
from cellmill.ingestion.sources import Source
from cellmill.ingestion.sources.h5ad import open_h5ad

_open: dict[str, Source] = {}
"""The source that this process has open, by path and stamp; one at most."""


def open_source(plan: SourcePlan) -> Source:
    """Return a plan's file, opened.

    Raises
    ------
    SourceError
        It cannot be opened, or has changed since it was planned.
    """
    assert plan.path is not None
    key = f"{plan.path} {plan.stamp}"
    if key not in _open:
        close_source()
        source = open_h5ad(plan.path, plan.dataset)
        if source.stamp != plan.stamp:
            source.close()
            raise SourceError(
                "The file was changed while it was being read.", where=plan.url, fix="Run again when it is complete."
            )
        _open[key] = source
    return _open[key]


def close_source() -> None:
    """Close what is open."""
    while _open:
        _open.popitem()[1].close()
