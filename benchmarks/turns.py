"""One process of a benchmark whose rows take turns: it is told a row and a round, runs it, and prints what it took.

Only what comes with Python is imported, so that it runs in any environment; `psutil` where there is a process tree.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = Callable[[int], int]
"""Runs a round, the number of which it is given, and returns how many cells were delivered."""


def take_turns(rows: dict[str, Row], tree: bool = False) -> None:
    """Run rows as the lines of standard input ask for them, ``NAME ROUND``, until it ends.

    Prints a line of JSON after each: cells, CPU seconds (of the whole process tree if `tree`), seconds, and the peak
    memory so far of the largest process.
    """
    # Libraries print as they like; answers go where nothing else does.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        name, number = line.split()
        cpu, start = cpu_seconds(tree), time.perf_counter()
        cells = rows[name](int(number))
        cpu, wall = cpu_seconds(tree) - cpu, time.perf_counter() - start
        print(json.dumps({"cells": cells, "cpu_s": cpu, "wall_s": wall, "peak_gb": peak_gb(tree)}), file=answers)
        answers.flush()


def cpu_seconds(tree: bool) -> float:
    """Return user and system time of this process with its threads, with all below it if it is to be the tree's."""
    return time.process_time() + (sum(map(process_seconds, below())) if tree else 0.0)


def process_seconds(process: Any) -> float:
    """Return user and system time of another process; none if it has just ended."""
    import psutil

    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


def peak_gb(tree: bool) -> float:
    """Return the largest peak of resident memory among the processes, in GB."""
    peaks = []
    for number in [os.getpid(), *(process.pid for process in (below() if tree else []))]:
        with contextlib.suppress(OSError, StopIteration):
            text = Path(f"/proc/{number}/status").read_text().splitlines()
            peaks.append(1024 * int(next(line for line in text if line.startswith("VmHWM")).split()[1]) / 1e9)
    return max(peaks, default=0.0)


def below() -> list[Any]:
    """Return the processes below this one."""
    import psutil

    return psutil.Process().children(recursive=True)
