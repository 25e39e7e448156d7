"""A hook that outlives its scheduler."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from cellmill.ingestion.schedule.config import HookConfig
from cellmill.ingestion.schedule.hook import run_hook
from tests.ingestion.cells import make_adata, write
from tests.ingestion.schedule.clockwork import FakeClock, schedule, scheduler

pytestmark = pytest.mark.usefixtures("without_plots")

WAITING = """
import os, pathlib, sys, time
with open(sys.argv[1], "a") as file:
    file.write(f"{os.getpid()}\\n")
while not pathlib.Path(sys.argv[2]).exists():
    time.sleep(0.02)
"""


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_hook_whose_scheduler_was_killed_is_not_started_again_beside_itself(tmp_path: Path) -> None:
    started, stop = tmp_path / "started", tmp_path / "stop"
    config = schedule(
        tmp_path / "atlas",
        write(make_adata(10), tmp_path / "a.h5ad"),
        hook={"command": [sys.executable, "-c", WAITING, str(started), str(stop)], "timeout_s": 20},
    )
    (tmp_path / "reingest.json").write_text(config.model_dump_json())
    command = [sys.executable, "-m", "cellmill.cli", "schedule", str(tmp_path / "reingest.json"), "--once"]
    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    clock = FakeClock()
    try:
        wait_for(lambda: started.exists() and started.read_text().endswith("\n"))
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        for _ in range(2):
            report = scheduler(config, clock).once()
            assert report.hook is not None
            assert (report.hook.ok, report.hook.outcome.split(" since")[0]) == (False, "is still running")
            assert Path(report.hook.log).exists()
            assert report.retry is not None
            clock.time = report.retry
        (pid,) = started.read_text().split()
        os.kill(int(pid), 0)
    finally:
        killed.kill()
        stop.touch()

    def ends_well() -> bool:
        clock.time += timedelta(days=2)
        hook = scheduler(config, clock).once().hook
        return hook is not None and hook.ok

    # How the first one ended nobody knows, so that it is still owed.
    wait_for(ends_well)
    assert len(started.read_text().split()) == 2
    assert scheduler(config, clock).once().hook is None


def test_what_a_hook_leaves_running_keeps_no_later_one_waiting(tmp_path: Path) -> None:
    config = HookConfig(command=("sh", "-c", "sleep 60 & echo $!"))
    results = [run_hook(config, {}, tmp_path / f"{n}.log", tmp_path / "hook.lock") for n in range(2)]
    for result in results:
        os.kill(int(result.tail), signal.SIGKILL)
    assert [result.outcome for result in results] == ["ended well", "ended well"]
