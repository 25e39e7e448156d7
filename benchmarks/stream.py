"""Cells per CPU-second of the stream, in one interleaved run: ``python -m benchmarks.stream --help``.

CPU time is that of the whole process tree where Ray works, and of this process with its threads elsewhere: Ray's idle
processes are no part of the stream in process. Each round runs every row once; the table shows medians. The first round
only warms caches and compilers.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil
from benchmarks.synthetic import write_atlas

from cellmill.atlas import Atlas
from cellmill.cluster import ClusterConfig, connect
from cellmill.stream import Stream, StreamConfig
from cellmill.stream.layout import group_layout
from cellmill.stream.reader import read_block
from cellmill.tokens import TokenConfig, Tokeniser

TOKENS = TokenConfig(n_bins=51, max_genes=1200)
RAY_ROW = "stream, through Ray Data"
PROMPTS = TokenConfig(n_bins=51, max_genes=1200, prompt_ratios=(0.25, 0.5, 0.75))


def cpu_seconds(tree: bool) -> float:
    """Return user and system time of this process, with all below it if it is to be the tree's."""
    me = psutil.Process()
    total = 0.0
    for process in [me, *(me.children(recursive=True) if tree else [])]:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def rows(atlas: Atlas, batch_size: int, with_ray: bool) -> dict[str, Callable[[int], int]]:
    """Return what is measured: functions of the epoch that return the cells they delivered."""
    selection = atlas.snapshot().select()

    def make(tokens: TokenConfig, backend: str) -> Stream:
        config = StreamConfig.model_validate({"batch_size": batch_size, "backend": backend})
        return Stream(selection, Tokeniser(tokens), config)

    plain, prompts = make(TOKENS, "local"), make(PROMPTS, "local")

    def read(epoch: int) -> int:
        plan = plain.plan(epoch)
        cells = 0
        for group in plain.groups(plan, 0, 1):
            cells += read_block(plain.work(plan, group_layout(plan, group)).reading).n_cells
        return cells

    def copy(epoch: int) -> int:
        nnz = sum(entry.nnz for entry in selection.shards)
        source = np.ones(1 << 24, np.uint8)
        target = np.empty_like(source)
        for _ in range(nnz * 3 // source.size):
            np.copyto(target, source)
        return selection.n_cells

    def consume(stream: Stream) -> Callable[[int], int]:
        return lambda epoch: sum(batch.n_cells for batch in stream.epoch(epoch))

    measured = {
        "floor: copy of the tokens' bytes": copy,
        "read, no tokens": read,
        "stream, in process": consume(plain),
        "stream with prompts, in process": consume(prompts),
    }
    if with_ray:
        connect(ClusterConfig(address="local", object_store_mb=1500))
        measured[RAY_ROW] = consume(make(TOKENS, "ray"))
    return measured


def run(atlas: Atlas, *, batch_size: int, rounds: int, with_ray: bool) -> dict[str, dict[str, float]]:
    """Measure every row, `rounds` times and once to warm up."""
    measured = rows(atlas, batch_size, with_ray)
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in measured}
    for number in range(rounds + 1):
        for name, function in measured.items():
            tree = name == RAY_ROW
            cpu, wall = cpu_seconds(tree), time.perf_counter()
            cells = function(number)
            found = cells / (cpu_seconds(tree) - cpu), cells / (time.perf_counter() - wall)
            if number:
                seen[name].append(found)
    return {
        name: {
            "cells_per_cpu_second": float(np.median([cpu for cpu, _ in found])),
            "worst": min(cpu for cpu, _ in found),
            "best": max(cpu for cpu, _ in found),
            "cells_per_second": float(np.median([wall for _, wall in found])),
        }
        for name, found in seen.items()
    }


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--atlas", help="an atlas; by default a synthetic one is written")
    parser.add_argument("--cells", type=int, default=131_072, help="cells of the synthetic atlas")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-ray", action="store_true", help="leave out the row through Ray Data")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/stream.json"))
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        url = options.atlas or str(Path(folder) / "atlas")
        if options.atlas is None:
            # In a process of its own, whose memory is not that of the stream.
            writer = multiprocessing.get_context("spawn").Process(target=write_atlas, args=(Path(url), options.cells))
            writer.start()
            writer.join()
        atlas = Atlas.open(url)
        shards = atlas.snapshot().shards
        cells = sum(entry.n_cells for entry in shards)
        about = {
            "cells": cells,
            "genes_per_cell": sum(entry.nnz for entry in shards) / cells,
            "bytes_per_cell": sum(entry.bytes for entry in shards) / cells,
        }
        results = run(atlas, batch_size=options.batch_size, rounds=options.rounds, with_ray=not options.no_ray)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{cells:,} cells, {about['genes_per_cell']:,.0f} genes and {about['bytes_per_cell']:,.0f} bytes a cell")
    print(f"{'':36}{'cells/CPU-s':>12}{'worst':>10}{'best':>10}{'cells/s':>10}")
    for name, found in results.items():
        numbers = (found[key] for key in ("cells_per_cpu_second", "worst", "best", "cells_per_second"))
        print(
            f"{name:36}"
            + "".join(f"{number:>{width},.0f}" for number, width in zip(numbers, (12, 10, 10, 10), strict=True))
        )
    print(f"peak memory of this process: {peak:.2f} GB")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({**about, "peak_gb": peak, "rows": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
