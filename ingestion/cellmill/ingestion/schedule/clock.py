"""Time as the schedule sees it, so that tests can turn it."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol

_LONGEST_NAP_S = 60.0


class Clock(Protocol):
    """Tells the time, and waits."""

    def now(self) -> datetime:
        """Return the time, in UTC."""
        ...

    def sleep_until(self, moment: datetime) -> None:
        """Return when it is `moment`."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        """See `Clock`."""
        return datetime.now(UTC)

    def sleep_until(self, moment: datetime) -> None:
        """See `Clock`; the clock may be set, and the machine suspended, meanwhile."""
        while (left := (moment - self.now()).total_seconds()) > 0:
            time.sleep(min(left, _LONGEST_NAP_S))
