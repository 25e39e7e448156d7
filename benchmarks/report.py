"""What every benchmark tells beside its figures: the machine, versions, goals, and where it is written."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil


def machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    about = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = next((line.split(":")[1].strip() for line in about.splitlines() if line.startswith("model name")), "")
    return {
        "cpu": model,
        "cpus": os.cpu_count(),
        "memory_gb": psutil.virtual_memory().total / 1e9,
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_average": list(os.getloadavg()),
    }


def versions(*names: str) -> dict[str, str]:
    """Return the versions of packages."""
    return {name: version(name) for name in names}


def at_least(name: str, goal: float, value: float, unit: str, measured: str) -> dict[str, Any]:
    """Return a goal that a figure is to reach; `measured` says of what the figure is."""
    return _goal(name, goal, value, unit, measured, value >= goal)


def at_most(name: str, goal: float, value: float, unit: str, measured: str) -> dict[str, Any]:
    """Return a goal that a figure is not to exceed; `measured` says of what the figure is."""
    return _goal(name, goal, value, unit, measured, value <= goal)


def _goal(name: str, goal: float, value: float, unit: str, measured: str, met: bool) -> dict[str, Any]:
    facts = {"name": name, "goal": goal, "value": float(value), "unit": unit}
    return {**facts, "met": bool(met), "measured": measured}


def show_goals(goals: list[dict[str, Any]]) -> None:
    """Print goals, a line each."""
    for goal in goals:
        state = "met" if goal["met"] else "NOT MET"
        figure = f"{goal['value']:,.3f} {goal['unit']} (goal {goal['goal']:g}; {goal['measured']})"
        print(f"{state:8}{goal['name']}: {figure}")


def save(found: dict[str, Any], path: Path) -> None:
    """Write what was found as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")
