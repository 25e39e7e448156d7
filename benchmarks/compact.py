"""Compaction: cells per CPU-second, memory, and how much better workers' batches are mixed afterwards.

``python -m benchmarks.compact`` makes a synthetic atlas, whose data sets came one by one, and compacts a quarter of it
and all of it, each in a process of its own: memory that is bounded is about the same. Then both are streamed as 1, 8
and 64 workers do; the entropy of donors and data sets within a worker's part of a batch is told beside that of parts
drawn at random. ``--cells 8192`` takes a minute.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.report import at_least, at_most, machine, save, show_goals, versions
from benchmarks.stream import mixed
from benchmarks.synthetic import write_atlas
from benchmarks.turns import peak_gb

from cellmill.atlas import Atlas
from cellmill.atlas.compacting import THREADS, compact

LABELS = ("donor", "dataset")


def run(folder: str, datasets: list[str], shard_cells: int, threads: int, answer: Any) -> None:
    """Compact data sets, and send what it took; a small compaction before it has compiled what is to be compiled."""
    warm, atlas = f"{folder}-warm", Atlas.open(folder)
    shutil.copytree(folder, warm, copy_function=os.link)
    compact(Atlas.open(warm), datasets[:1], shard_cells=shard_cells)
    shutil.rmtree(warm)
    cpu, start = time.process_time(), time.perf_counter()
    done = compact(atlas, datasets, shard_cells=shard_cells, threads=threads)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - start
    answer.put(
        {
            "cells": sum(done.datasets.values()),
            "threads": threads,
            "shards_before": done.shards_before,
            "shards_after": done.shards_after,
            "cpu_s": cpu,
            "wall_s": wall,
            "peak_gb": peak_gb(tree=False),
            "bytes_before": done.bytes_before,
            "bytes_after": done.bytes_after,
            "temporary_bytes": done.temporary_bytes,
        }
    )


def measure(folder: Path, datasets: list[str], shard_cells: int, threads: int = 1) -> dict[str, Any]:
    """Compact data sets in a process of its own."""
    context = multiprocessing.get_context("spawn")
    answer = context.SimpleQueue()
    child = context.Process(target=run, args=(str(folder), datasets, shard_cells, threads, answer))
    child.start()
    found: dict[str, Any] = answer.get()
    child.join()
    return {**found, "cells_per_cpu_second": found["cells"] / found["cpu_s"]}


def goals(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what was to be reached, and whether it was."""
    quarter, whole, _ = found["rows"]
    told = f"{whole['cells']:,} cells"
    beside = whole["peak_gb"] / quarter["peak_gb"]
    return [
        at_least("compaction", 10_000.0, whole["cells_per_cpu_second"], "cells per CPU-second", told),
        at_most("peak memory", 1.0, whole["peak_gb"], "GB", told),
        at_most("peak memory of all cells beside that of a quarter", 1.25, beside, "times", told),
        *(
            at_least(f"entropy of {label}, {row['workers']} workers, after", 0.99, row[label], "of random", told)
            for row in found["mixing_after"]
            for label in LABELS
        ),
    ]


def main() -> None:
    """Make an atlas, measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=16_384)
    parser.add_argument("--dataset-cells", type=int, default=1024, help="cells of each data set")
    parser.add_argument("--shard-cells", type=int, default=8192, help="cells of each new shard")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/compact.json"))
    options = parser.parse_args()
    with TemporaryDirectory(prefix="compact-") as temporary:
        folder = Path(temporary) / "all"
        atlas = write_atlas(folder, options.cells, options.dataset_cells)
        names = [entry.dataset for entry in atlas.snapshot().shards]
        quarter, again = Path(temporary) / "quarter", Path(temporary) / "again"
        for copy in (quarter, again):
            shutil.copytree(folder, copy, copy_function=os.link)
        before = mixed(atlas.snapshot().select(), options.batch_size)
        rows = [
            measure(quarter, names[: len(names) // 4], options.shard_cells),
            measure(folder, names, options.shard_cells),
            measure(again, names, options.shard_cells, THREADS),
        ]
        after = mixed(Atlas.open(folder).snapshot().select(), options.batch_size)
    found: dict[str, Any] = {
        "machine": machine(),
        "versions": versions("cellmill", "zarr", "numba", "pyarrow"),
        "batch_size": options.batch_size,
        "rows": rows,
        "mixing_before": before,
        "mixing_after": after,
    }
    found["goals"] = goals(found)
    show(found)
    save(found, options.output)


def show(found: dict[str, Any]) -> None:
    """Print the tables."""
    head = f"{'cells':>10}{'threads':>8}{'shards':>14}{'cells/CPU-s':>13}{'cells/s':>10}{'peak GB':>9}"
    print(f"{head}{'MB before':>11}{'MB after':>10}")
    for row in found["rows"]:
        shards = f"{row['shards_before']} to {row['shards_after']}"
        rates = f"{row['cells_per_cpu_second']:>13,.0f}{row['cells'] / row['wall_s']:>10,.0f}{row['peak_gb']:>9.2f}"
        sizes = f"{row['bytes_before'] / 1e6:>11,.1f}{row['bytes_after'] / 1e6:>10,.1f}"
        print(f"{row['cells']:>10,}{row['threads']:>8}{shards:>14}{rates}{sizes}")
    for before, after in zip(found["mixing_before"], found["mixing_after"], strict=True):
        told = ", ".join(f"of {label}s {before[label]:.2%}, then {after[label]:.2%}" for label in LABELS)
        print(f"{before['workers']:>3} workers, {before['cells_of_a_worker']} cells each: entropy {told} of random")
    show_goals(found["goals"])


if __name__ == "__main__":
    main()
