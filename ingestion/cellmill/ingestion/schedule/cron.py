"""When a cron expression is due, in a time zone whose clocks change."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from croniter import CroniterBadDateError, croniter

_CHANCE = re.compile(r"(?<![a-z])[hr](?![a-z])", re.IGNORECASE)
"""A field that croniter draws by chance (``R``) or from a hash (``H``): it would be due at other times at each look."""

_SHIFT = timedelta(hours=2)
"""The most that any clock is put forward or back."""


def check_expression(expression: str) -> None:
    """Refuse what is no cron expression, or never due.

    Raises
    ------
    ValueError
        Says why.
    """
    shortcut = expression.startswith("@")
    if (not shortcut and len(expression.split()) != 5) or not croniter.is_valid(expression):
        raise ValueError(
            f"{expression!r} is no cron expression; five fields are needed: minute hour day month weekday, "
            "such as '0 2 * * *' for two o'clock each night"
        )
    if _CHANCE.search(expression):
        raise ValueError(f"{expression!r} is no cron expression: fields drawn by chance, R and H, are not known here")
    try:
        croniter(expression, datetime(2024, 1, 1)).get_next(datetime)
    except CroniterBadDateError as error:
        raise ValueError(f"{expression!r} is never due") from error


def next_time(expression: str, zone: ZoneInfo, after: datetime) -> datetime:
    """Return the first time after `after` at which the expression is due.

    As in Vixie's cron: where the clocks are put forward, what is due in the hour that is left out is due an hour later
    by the new time; where they are put back, an expression with a fixed hour is due in the first of the two hours
    alone, one for every hour (``*`` or ``*/n``) in both.

    Parameters
    ----------
    expression
        Five fields, or a shortcut such as ``@daily``. The day of the week 0 is Sunday.
    zone
        In which the expression is read.
    after
        With a time zone.

    Returns
    -------
    datetime
        In UTC.
    """
    found: datetime | None = None
    for first, moments in _readings(expression, zone, after):
        found = min((moment for moment in [*moments, found] if moment is not None and moment > after), default=None)
        if found is not None and first > found + _SHIFT:
            break
    assert found is not None
    return found


def times_between(expression: str, zone: ZoneInfo, start: datetime, end: datetime) -> list[datetime]:
    """Return all times in ``(start, end]`` at which the expression is due, in UTC."""
    found: set[datetime] = set()
    for first, moments in _readings(expression, zone, start):
        found.update(moment for moment in moments if start < moment <= end)
        if first > end + _SHIFT:
            break
    return sorted(found)


def _readings(expression: str, zone: ZoneInfo, after: datetime) -> Iterator[tuple[datetime, list[datetime]]]:
    """Yield what a clock on the wall shows when the expression is due, as the times that may be meant, the first twice.

    It begins before `after`, since an hour that comes twice has later times that the wall shows earlier.
    """
    both = expression == "@hourly" or (not expression.startswith("@") and expression.split()[1].startswith("*"))
    times = croniter(expression, after.astimezone(zone).replace(tzinfo=None) - _SHIFT)
    while True:
        try:
            naive = times.get_next(datetime)
        except CroniterBadDateError:
            return
        first = naive.replace(tzinfo=zone).astimezone(UTC)
        second = naive.replace(tzinfo=zone, fold=1).astimezone(UTC)
        # The second reading is later where the hour comes twice, earlier where it does not come, the same otherwise.
        yield first, [first, second] if both and second > first else [first]
