"""What the stream was to reach, and whether it did."""

from __future__ import annotations

from typing import Any

from benchmarks.report import at_least, at_most


def goals(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the goals of what was measured."""
    rate = {row["name"]: row["cells_per_cpu_second"] for row in found["rows"]}
    peak = {row["name"]: row["peak_gb"] for row in found["rows"]}
    result: list[dict[str, Any]] = []

    cells = f"{found['cells']:,} cells of {found['datasets']} data sets in batches of {found['batch_size']}"
    rows = f"{cells}, median of {found['rounds']} rounds"

    for name, goal in (("local:tokens", 60_000.0), ("ray:tokens", 45_000.0)):
        for row in (name, f"{name}-arrow"):
            if row in rate:
                result.append(at_least(f"tokens: {row}", goal, rate[row], "cells per CPU-second", rows))
    if "peer:annbatch" in rate:
        for row in ("local:raw", "local:raw-arrow"):
            value = rate[row] / rate["peer:annbatch"]
            result.append(at_least(f"raw counts beside annbatch: {row}", 3.0, value, "times", rows))
    for row in (row for row in peak if row.startswith("local:") and row != "local:floor"):
        told = f"{cells}, largest of {found['rounds']} rounds"
        result.append(at_most(f"peak memory: {row}", 1.0, peak[row], "GB", told))
    for row in found["mixing"]:
        told = f"{cells}, {row['micro_batches']:.1f} micro-batches a step"
        name, value = f"waste of micro-batches, workers: {row['workers']}", row["waste_of_micro_batches"]
        result.append(at_most(name, 0.01, value, "of the time", told))
    for label in ("donor", "dataset"):
        value = found["mixing"][0][label]
        result.append(at_least(f"entropy of {label} in global batches", 0.99, value, "of random batches", cells))
    return result


def where_time_goes(found: dict[str, Any]) -> list[str]:
    """Return, for each rate that was missed in process, the microseconds of a cell by stage."""
    us = {row["name"]: row["us_per_cell"] for row in found["rows"]}
    texts = []
    for goal in found["goals"]:
        row = goal["name"].partition(": ")[2]
        costs = found["stages_us_per_cell"].get(row.removeprefix("local:"))
        if goal["met"] or costs is None or goal["unit"] == "GB":
            continue
        stages = ", ".join(f"{stage} {cost:.1f}" for stage, cost in costs.items())
        wanted = us["peer:annbatch"] / goal["goal"] if goal["unit"] == "times" else 1e6 / goal["goal"]
        texts.append(f"{row}: {us[row]:.1f} us a cell, wanted {wanted:.1f}; measured apart: {stages}.")
    return texts
