"""What the tests of schedules share."""

from __future__ import annotations

import pytest

from cellmill.ingestion import pipeline


@pytest.fixture
def without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the directories of single ingestions, whose plots take most of a small one's time."""
    monkeypatch.setattr(pipeline, "write_run", lambda config, *_: config.output)
