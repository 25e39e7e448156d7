"""The time, as a thing that tests can replace."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """What a schedule needs to know of time."""

    def now(self) -> float:
        """Return Unix time in seconds."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> float:
        """Return Unix time in seconds."""
        return time.time()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)
