"""What the stream was to reach, and whether it did."""

from __future__ import annotations

from typing import Any


def goals(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the goals of what was measured."""
    rate = {row["name"]: row["cells_per_cpu_second"] for row in found["rows"]}
    peak = {row["name"]: row["peak_gb"] for row in found["rows"]}
    result: list[dict[str, Any]] = []

    def add(name: str, goal: float, value: float, unit: str, met: bool) -> None:
        result.append({"name": name, "goal": goal, "value": value, "unit": unit, "met": met})

    for name, goal in (("local:tokens", 60_000.0), ("ray:tokens", 45_000.0)):
        for row in (name, f"{name}-arrow"):
            if row in rate:
                add(f"tokens: {row}", goal, rate[row], "cells per CPU-second", rate[row] >= goal)
    if "peer:annbatch" in rate:
        for row in ("local:raw", "local:raw-arrow"):
            value = rate[row] / rate["peer:annbatch"]
            add(f"raw counts beside annbatch: {row}", 3.0, value, "times", value >= 3)
    for row in (row for row in peak if row.startswith("local:") and row != "local:floor"):
        add(f"peak memory: {row}", 1.0, peak[row], "GB", peak[row] < 1)
    for label in ("donor", "dataset"):
        value = found["mixing"][0][label]
        add(f"entropy of {label} in global batches", 0.99, value, "of random batches", value >= 0.99)
    return result
