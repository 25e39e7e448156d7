"""Processes killed at every named point: the atlas stays whole, and the rerun ends where an undisturbed run does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from cellmill.atlas import Atlas
from tests.faults.killing import draw, scenarios, state
from tests.faults.points import named
from tests.faults.zygote import zygote
from tests.ingestion.cells import make_adata, write
from tests.soak.results import write_results

pytestmark = pytest.mark.soak

SEEDS = 100
ON_RAY = (
    ("driver", "put delta commit", "before", "1"),
    ("task", "put shard counts", "after", "0"),
    ("task", "put receipt", "before", "0"),
)
"""Whose process, and the point; the first commit of the driver makes the catalog."""


def test_a_process_killed_at_any_named_point_loses_and_repeats_nothing(tmp_path: Path) -> None:
    began = time.monotonic()
    with zygote() as process:
        found = scenarios(process, tmp_path)
        points = sum(len(list(named(scenario.points))) for scenario in found)
        drawn = draw(found, max(SEEDS, points), seed=1)
        for number, (scenario, point) in enumerate(drawn):
            scenario.kill(process, point, tmp_path, collects=number % 2 == 0)
    write_results(
        "killed_ingestion",
        seeds=len(drawn),
        named_points=points,
        moments=sum(len(scenario.points) for scenario in found),
        killed=dict(Counter(scenario.name for scenario, _ in drawn)),
        points={scenario.name: sorted({f"{n} ({p})" for n, p, _ in scenario.points}) for scenario in found},
        seconds=round(time.monotonic() - began, 1),
    )


def run_on_ray(source: Path, atlas: Path, *fatal: str) -> int:
    command = [sys.executable, "-m", "tests.faults.ray_victim", str(source), str(atlas), *fatal]
    # Workers of the cluster look for modules where the driver does.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, start_new_session=True, env=environment) as child:
        try:
            return child.wait(timeout=300)
        finally:
            # What a killed driver leaves of its cluster ends with its session.
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)


def test_an_ingestion_killed_on_ray_loses_and_repeats_nothing(tmp_path: Path) -> None:
    source = write(make_adata(200, 30, seed=1), tmp_path / "cells.h5ad")
    (tmp_path / "whole").mkdir()
    assert run_on_ray(source, tmp_path / "whole/atlas") == 0
    wanted = state(tmp_path / "whole")
    for number, fatal in enumerate(ON_RAY):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert run_on_ray(source, folder / "atlas", *fatal) == -signal.SIGKILL
        assert Atlas.open(folder / "atlas").snapshot().n_cells == 0
        Atlas.open(folder / "atlas").verify().check()
        assert run_on_ray(source, folder / "atlas") == 0
        assert state(folder) == wanted
        Atlas.open(folder / "atlas").verify().check()
    write_results("killed_ingestion", on_ray=[" ".join(fatal) for fatal in ON_RAY])
