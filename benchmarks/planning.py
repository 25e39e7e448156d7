"""Planning an epoch over a billion cells, seconds and memory of one worker: ``python -m benchmarks.planning --help``.

The catalogue is that of `benchmarks.catalogue`: metadata alone, synthetic, in a few hundred distinct files. Each row is
a way to draw an epoch, measured in a process of its own as one of several workers would do it, in the middle of the
epoch: what is selected, the stream's opening, the plan of the epoch with all groups that the worker makes, and the
description of some groups, which holds the rows to read, cell ids and labels. No counts are read. Imports are left out
of the seconds and left in the memory. The files are in the machine's page cache.
"""

from __future__ import annotations

import argparse
import json
import time
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from benchmarks.catalogue import N_TYPES, SHARD, in_child, write
from benchmarks.report import at_most, machine, save, show_goals, versions
from benchmarks.turns import peak_gb

from cellmill.atlas import Atlas
from cellmill.stream import Stream, StreamConfig
from cellmill.stream.cells import ranges
from cellmill.stream.group import GroupWork
from cellmill.stream.layout import group_layout
from cellmill.tokens import TokenConfig, Tokeniser

DESCRIBED = 50
DRAWS: dict[str, tuple[str | None, dict[str, Any] | None]] = {
    "every cell once": (None, None),
    "half of all cells": ("is_primary_data", None),
    "class-balanced": (None, {"kind": "balanced", "by": "cell_type"}),
    "sets of 16": (None, {"kind": "sets", "by": ["donor_id", "cell_type"], "size": 16}),
}


def plan(folder: str, name: str, world_size: int, answer: Any) -> None:
    """Plan as one worker does, and send what it took."""
    where, sampling = DRAWS[name]
    # The compiled and imported parts are no part of planning.
    import cellmill.atlas.selection

    assert cellmill.atlas.selection
    clock = [time.perf_counter()]

    def lap() -> float:
        clock.append(time.perf_counter())
        return clock[-1] - clock[-2]

    selection = Atlas.open(folder).snapshot().select(where)
    seconds = {"select": lap()}
    labels = {"cell_type": ("cell_type", [f"type {i}" for i in range(N_TYPES)])}
    config = StreamConfig.model_validate({"batch_size": 1024, "sampling": sampling})
    stream = Stream(
        selection, Tokeniser(TokenConfig()), config, rank=world_size - 1, world_size=world_size, labels=labels
    )
    seconds["open the stream"] = lap()
    epoch = stream.plan(7)
    taken = epoch.longest // 2
    groups = list(stream.groups(epoch, stream.rank, world_size, taken))
    seconds["plan the epoch"] = lap()
    works = [stream.work(epoch, group_layout(epoch, groups[0], taken))]
    seconds["first group"] = lap()
    for group in groups[1 : 1 + DESCRIBED]:
        works.append(stream.work(epoch, group_layout(epoch, group, taken)))
    seconds["a group"] = lap() / DESCRIBED
    described = sum(work.cells.size for work in works)
    if sampling is None and (again := described - distinct(works)):
        raise SystemExit(f"{name}: {again} cells come twice")
    answer.put(
        {
            "draws": name,
            "cells": selection.n_cells,
            "drawn": stream.n_cells,
            "steps": stream.steps_per_epoch,
            "groups_to_come": len(groups),
            "cells_of_a_group": described / len(works),
            "seconds": seconds,
            "us_per_cell": 1e6 * seconds["a group"] * len(works) / described,
            "peak_gb": peak_gb(False),
        }
    )


def distinct(works: list[GroupWork]) -> int:
    """Return how many distinct cells come out of groups."""
    seen: dict[str, list[Any]] = {}
    for work in works:
        rows = [(runs.entry.digest, ranges(runs.starts, runs.stops - runs.starts)) for runs in work.reading.shards]
        place = np.concatenate([np.full(row.size, i) for i, (_, row) in enumerate(rows)])[work.cells]
        row = np.concatenate([row for _, row in rows])[work.cells]
        for i, (digest, _) in enumerate(rows):
            seen.setdefault(digest, []).append(row[place == i])
    return sum(np.unique(np.concatenate(parts)).size for parts in seen.values())


def planned(folder: str, name: str, world_size: int) -> dict[str, Any]:
    """Run `plan` in a process of its own."""
    context = get_context("spawn")
    answer = context.SimpleQueue()
    child = context.Process(target=plan, args=(folder, name, world_size, answer))
    child.start()
    child.join()
    if child.exitcode:
        raise SystemExit(f"{name}: the process ended with {child.exitcode}")
    found: dict[str, Any] = answer.get()
    return found


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=10**9)
    parser.add_argument("--kinds", type=int, default=200, help="distinct files of metadata")
    parser.add_argument("--sets", type=int, default=2000, help="data sets")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/planning.json"))
    options = parser.parse_args()
    n_shards = -(-options.cells // SHARD)
    with TemporaryDirectory(prefix="planning-") as folder:
        in_child(write, folder, n_shards, min(options.kinds, n_shards), min(options.sets, n_shards))
        rows = []
        for name in DRAWS:
            rows.append(planned(folder, name, options.workers))
            print(json.dumps(rows[-1]), flush=True)
    result = {
        "machine": machine(),
        "versions": versions("cellmill", "numpy", "pyarrow", "deltalake"),
        "cells": n_shards * SHARD,
        "shards": n_shards,
        "workers": options.workers,
        "rows": rows,
        "goals": goals(rows, n_shards * SHARD),
    }
    save(result, options.output)
    show(result)


def goals(rows: list[dict[str, Any]], cells: int) -> list[dict[str, Any]]:
    """Return what was to be reached, and whether it was."""
    once = next(row for row in rows if row["draws"] == "every cell once")
    before = {row["draws"]: sum(row["seconds"].values()) - row["seconds"]["a group"] for row in rows}
    peak = max(row["peak_gb"] for row in rows)
    told = f"{cells:,} cells"
    return [
        at_most("peak memory of a worker that plans", 2.0, peak, "GB", f"{told}, any draws"),
        at_most("seconds to the first group", 30.0, before["every cell once"], "s", f"{told}, every cell once"),
        at_most("seconds to the first group", 600.0, max(before.values()), "s", f"{told}, any draws"),
        at_most("description of a group", 3.0, once["us_per_cell"], "us a cell", f"{told}, every cell once"),
    ]


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    print(f"{result['cells']:,} cells in {result['shards']:,} shards; one of {result['workers']} workers, mid-epoch")
    steps = list(result["rows"][0]["seconds"])
    print(f"{'':20}{'cells drawn':>15}" + "".join(f"{step:>17}" for step in steps) + f"{'us/cell':>9}{'GB peak':>9}")
    for row in result["rows"]:
        seconds = "".join(f"{row['seconds'][step]:>15.3f} s" for step in steps)
        print(f"{row['draws']:20}{row['drawn']:>15,}{seconds}{row['us_per_cell']:>9.2f}{row['peak_gb']:>9.2f}")
    show_goals(result["goals"])


if __name__ == "__main__":
    main()
