"""When expressions are due: Sundays, clocks that are put forward and back, and what is no expression."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellmill.ingestion.schedule.cron import check_expression, next_time, times_between

BERLIN = ZoneInfo("Europe/Berlin")


def due(expression: str, zone: ZoneInfo, start: datetime, days: float) -> list[str]:
    """Return the local times, with their offsets, at which an expression is due."""
    begin = start.replace(tzinfo=zone)
    end = (begin.astimezone(UTC) + timedelta(days=days)).astimezone(zone)
    return [f"{moment.astimezone(zone):%d %H:%M %z}" for moment in times_between(expression, zone, begin, end)]


@pytest.mark.parametrize("sunday", ["0", "7", "sun"])
def test_sunday_is_the_day_that_kubernetes_takes(sunday: str) -> None:
    found = next_time(f"0 0 * * {sunday}", ZoneInfo("UTC"), datetime(2026, 11, 25, tzinfo=UTC))
    assert (found.weekday(), found.day) == (6, 29)


def test_what_is_due_in_an_hour_that_does_not_come_is_due_after_it() -> None:
    # On 29 March 2026 it is 03:00 after 01:59.
    assert due("30 2 * * *", BERLIN, datetime(2026, 3, 28, 12), 3) == [
        "29 03:30 +0200",
        "30 02:30 +0200",
        "31 02:30 +0200",
    ]
    assert due("*/30 * * * *", BERLIN, datetime(2026, 3, 29, 1), 1 / 12) == [
        "29 01:30 +0100",
        "29 03:00 +0200",
        "29 03:30 +0200",
        "29 04:00 +0200",
    ]


def test_in_an_hour_that_comes_twice_a_fixed_time_is_due_once_and_every_hour_twice() -> None:
    # On 25 October 2026 it is 02:00 after 02:59.
    assert due("30 2 * * *", BERLIN, datetime(2026, 10, 24, 12), 2) == ["25 02:30 +0200", "26 02:30 +0100"]
    assert due("0 * * * *", BERLIN, datetime(2026, 10, 25, 0, 30), 1 / 6) == [
        "25 01:00 +0200",
        "25 02:00 +0200",
        "25 02:00 +0100",
        "25 03:00 +0100",
    ]
    second = datetime(2026, 10, 25, 2, 10, fold=1, tzinfo=BERLIN)
    assert next_time("0 * * * *", BERLIN, second) == datetime(2026, 10, 25, 2, 0, tzinfo=UTC)


@settings(max_examples=30)
@given(
    st.sampled_from(["0 2 * * *", "30 2 * * 0", "*/20 * * * *", "15 1,2,3 * * *", "@hourly", "0 0 1 * *"]),
    st.sampled_from(["UTC", "Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe", "Asia/Kathmandu"]),
    st.datetimes(datetime(2025, 1, 1), datetime(2027, 12, 31)),
)
def test_times_grow_and_none_is_left_out(expression: str, name: str, start: datetime) -> None:
    zone, begin = ZoneInfo(name), start.replace(tzinfo=UTC)
    end = begin + timedelta(hours=40)
    one_by_one, moment = [], next_time(expression, zone, begin)
    while moment <= end:
        one_by_one.append(moment)
        later = next_time(expression, zone, moment)
        assert later > moment
        moment = later
    assert one_by_one == times_between(expression, zone, begin, end)
    if expression == "@hourly":
        assert len(one_by_one) in (39, 40, 41)  # half an hour more or less on Lord Howe


@pytest.mark.parametrize(
    "wrong", ["", "0 2 * *", "61 * * * *", "0 0 30 2 *", "* * * * * *", "nightly", "TZ=UTC 0 2 * * *", "@reboot"]
)
def test_what_is_no_expression_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"no cron expression|never due"):
        check_expression(wrong)


@pytest.mark.parametrize(
    "wrong", ["R * * * *", "0 r * * *", "H * * * *", "R(0-10) * * * *", "R/15 * * * *", "5,R * * * *"]
)
def test_a_field_drawn_by_chance_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="no cron expression"):
        check_expression(wrong)


def test_names_of_days_and_months_are_not_taken_for_chance() -> None:
    for expression in ("0 2 * mar,apr THU", "0 2 * MAR-apr fri", "@hourly"):
        check_expression(expression)
