"""Processes killed at named points: a small draw of what `make soak` does."""

from pathlib import Path

from tests.faults.killing import draw, scenarios
from tests.faults.zygote import zygote

DRAWS = 16


def test_what_is_killed_loses_and_repeats_nothing(tmp_path: Path) -> None:
    with zygote() as process:
        found = scenarios(process, tmp_path)
        for number, (scenario, point) in enumerate(draw(found, DRAWS, seed=0)):
            scenario.kill(process, point, tmp_path, collects=number % 2 == 0)
