"""Cells per CPU-second of the stream, beside other loaders and the floor: ``python -m benchmarks.stream --help``.

Cells of a synthetic atlas, whose data sets came one by one, are delivered in shuffled batches. Every row has a process
of its own, and rows take turns in rounds; the table shows medians, after a first round that warms up caches and
compilers. CPU time is that of the whole process tree where Ray works, and of the process with its threads elsewhere.
Before each round memory is touched and freed, for on a virtual machine the first touch of a page is paid to the host.
``--cells 20000 --rounds 1`` takes a minute or two.

Other loaders live in two environments of their own: that of `benchmarks.ingest` (Python 3.12), and one with torch for
those that need it. Both are used where they exist; rows that cannot run are left out, and the output says why. They
read counts like those of Cellmill's atlas, in an h5ad or in what they made of it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from benchmarks.ingest import touch_memory
from benchmarks.ingest_inputs import write_h5ad
from benchmarks.report import machine, save, show_goals, versions
from benchmarks.stream_goals import goals, where_time_goes
from benchmarks.stream_rows import tokeniser
from benchmarks.synthetic import write_atlas, write_linked

from cellmill.atlas import Atlas, Selection
from cellmill.atlas.exporting import export_arrow
from cellmill.stream import Stream, StreamConfig, micro_batch_count, split_cells, straggler_ratio, unused
from cellmill.stream.bench import bench
from cellmill.stream.demand import GpuConfig
from cellmill.stream.mixing import mixing
from cellmill.tokens import RawCounts

FEATURES = 330_000
_LONGEST, _CAPACITY = 1201, 16 * 1201
"""Tokens of a cell of 1,200 genes, and how many such cells one forward pass holds."""
PEERS = Path("~/.cache/cellmill/benchmark-peers").expanduser()
WITH_TORCH = Path("~/.cache/cellmill/benchmark-peers-torch").expanduser()
LOCAL = {
    "floor": "floor: copy of the same bytes",
    "raw": "raw counts, in process",
    "raw-arrow": "raw counts, in process, from Arrow",
    "tokens": "tokens, in process",
    "tokens-arrow": "tokens, in process, from Arrow",
    "tokens-linked2": "tokens, in process, AnnData zarr 2 (blosc)",
    "tokens-linked3": "tokens, in process, AnnData zarr 3 (zstd)",
    "tokens-wide": "tokens of 330,000 features, in process",
    "prompts": "tokens in prompts, in process",
}
RAY = {
    "raw": "raw counts, Ray Data",
    "raw-arrow": "raw counts, Ray Data, from Arrow",
    "tokens": "tokens, Ray Data",
    "tokens-arrow": "tokens, Ray Data, from Arrow",
    "tokens-wide": "tokens of 330,000 features, Ray Data",
}
OTHERS = {
    # Name: label, environment, most cells of its input, most batches of a round.
    "annbatch": ("annbatch 0.3, zarrs", PEERS, 1 << 40, 640),
    "scdataset": ("scDataset 0.3, h5ad", WITH_TORCH, 50_000, 192),
    "annloader": ("AnnLoader, h5ad (dense)", WITH_TORCH, 50_000, 32),
    "scdl": ("BioNeMo-SCDL 0.1, uint16", WITH_TORCH, 50_000, 96),
    "soma": ("tiledbsoma-ml 0.1", WITH_TORCH, 16_384, 64),
    "scgpt": ("scGPT's collator (algorithm), no reading", WITH_TORCH, 50_000, 16),
}


class Process:
    """A process that runs rows when it is told to."""

    def __init__(self, command: list[str], own: bool, log: Path, stack: ExitStack) -> None:
        root = str(Path(__file__).resolve().parents[1])
        environment = dict(os.environ)
        if own:
            environment["PYTHONPATH"] = os.pathsep.join([root, environment.get("PYTHONPATH", "")]).strip(os.pathsep)
        else:
            environment.pop("PYTHONPATH", None)
        pipe = subprocess.PIPE
        self._log = log
        with log.open("w") as sink:
            self._process = subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=sink, text=True)
        stack.callback(self._process.communicate)

    def run(self, name: str, number: int) -> dict[str, float]:
        """Run a row once."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(f"{name} {number}\n")
            self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError((self._log.read_text().strip().splitlines() or ["it ended"])[-1])
        found: dict[str, float] = json.loads(answer)
        return found


def main() -> None:
    """Make inputs, measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=200_000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-ray", action="store_true", help="leave out the rows through Ray Data")
    parser.add_argument("--no-peers", action="store_true", help="leave out other loaders")
    parser.add_argument("--folder", type=Path, help="where inputs are kept; by default they are temporary")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/stream.json"))
    options = parser.parse_args()
    with TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)) / str(options.cells)
        write_atlases(folder, options.cells)
        rows, notes = measure(options, folder)
        selection = Atlas.open(folder / "zarr").snapshot().select()
        shards = selection.shards
        found = {
            "machine": machine(),
            "versions": versions("cellmill", "zarr", "numcodecs", "ray", "numba", "pyarrow"),
            "cells": options.cells,
            "datasets": len({entry.dataset for entry in shards}),
            "genes_per_cell": sum(entry.nnz for entry in shards) / options.cells,
            "bytes_per_cell": {
                name: sum(entry.bytes for entry in Atlas.open(folder / name).snapshot().shards) / options.cells
                for name in ("zarr", "arrow")
            },
            "batch_size": options.batch_size,
            "rounds": options.rounds,
            "rows": rows,
            "stages_us_per_cell": stages(folder, options.batch_size),
            "mixing": mixed(selection, options.batch_size),
            "notes": notes,
        }
    found["goals"] = goals(found)
    found["notes"] += where_time_goes(found)
    show(found)
    save(found, options.output)


def write_atlases(folder: Path, cells: int) -> None:
    """Write the atlas, the same with a large vocabulary or linked, and the export, unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, features in (("zarr", {}), ("wide", {"n_features": FEATURES})):
        if not (folder / name).exists():
            print(f"writing {name}", file=sys.stderr)
            write_atlas(folder / f"{name}.partial", cells, **features)
            (folder / f"{name}.partial").rename(folder / name)
    formats: dict[str, Literal[2, 3]] = {"linked2": 2, "linked3": 3}
    for name, zarr_format in formats.items():
        if not (folder / name).exists():
            print(f"writing {name}", file=sys.stderr)
            write_linked(folder / f"{name}.partial", folder / f"{name}-stores", cells, zarr_format)
            (folder / f"{name}.partial").rename(folder / name)
    export_arrow(Atlas.open(folder / "zarr").snapshot(), folder / "arrow")


def measure(options: argparse.Namespace, folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the measured rows, and what was left out."""
    own = [sys.executable, "-m", "benchmarks.stream_rows"]
    notes: list[str] = []
    seen: dict[str, list[dict[str, float]]] = {}
    with ExitStack() as stack:
        logs = Path(stack.enter_context(TemporaryDirectory()))
        plan: list[tuple[str, str, str, Process]] = []
        for name, label in LOCAL.items():
            command = [*own, "local", str(folder), str(options.batch_size), name]
            plan.append((f"local:{name}", name, label, Process(command, True, logs / f"local-{name}", stack)))
        if not options.no_ray:
            process = Process([*own, "ray", str(folder), str(options.batch_size), *RAY], True, logs / "ray", stack)
            plan += [(f"ray:{name}", name, label, process) for name, label in RAY.items()]
        if not options.no_peers:
            plan += others(options, folder, logs, notes, stack)
        for number in range(options.rounds + 1):
            touch_memory()
            for row in list(plan):
                key, name, label, process = row
                try:
                    found = process.run(name, number)
                except RuntimeError as error:
                    notes.append(f"{label}: failed ({error}).")
                    plan.remove(row)
                    continue
                print(f"round {number}: {label}, {found['cells'] / found['cpu_s']:,.0f}", file=sys.stderr)
                if number:
                    seen.setdefault(key, []).append(found)
    return [summary(key, label, seen[key]) for key, _, label, _ in plan if key in seen], notes


def others(
    options: argparse.Namespace, folder: Path, logs: Path, notes: list[str], stack: ExitStack
) -> list[tuple[str, str, str, Process]]:
    """Return the rows of other loaders that can run."""
    plan = []
    script = str(Path(__file__).with_name("stream_peers.py"))
    for name, (label, environment, most, batches) in OTHERS.items():
        python = environment / "bin/python"
        if not python.exists():
            notes.append(f"{label}: there is no environment {environment}.")
            continue
        cells = min(options.cells, most)
        source = folder.parent / f"{cells}-plain.h5ad"
        write_h5ad(source, cells, None)
        batches = min(batches, cells // options.batch_size)
        kept = folder.parent / f"peers-{cells}"
        command = [str(python), script, name, str(source), str(kept), str(options.batch_size), str(batches)]
        plan.append((f"peer:{name}", name, label, Process(command, False, logs / name, stack)))
    return plan


def summary(key: str, label: str, found: list[dict[str, float]]) -> dict[str, Any]:
    """Return a row of the table."""
    rates = [result["cells"] / result["cpu_s"] for result in found]
    return {
        "name": key,
        "label": label,
        "cells": int(found[0]["cells"]),
        "cells_per_cpu_second": float(np.median(rates)),
        "worst": min(rates),
        "best": max(rates),
        "us_per_cell": 1e6 / float(np.median(rates)),
        "cells_per_second": float(np.median([result["cells"] / result["wall_s"] for result in found])),
        "peak_gb": max(result["peak_gb"] for result in found),
    }


def stages(folder: Path, batch_size: int) -> dict[str, dict[str, float]]:
    """Return the microseconds of a cell in each stage, in process, by row."""
    found = {}
    for name in ("tokens", "tokens-arrow", "tokens-linked2", "tokens-linked3", "raw", "raw-arrow"):
        what, _, layout = name.partition("-")
        selection = Atlas.open(folder / (layout or "zarr")).snapshot().select()
        config = StreamConfig(batch_size=batch_size)
        seen = bench(selection, tokeniser(what), config, by={}, cells=selection.n_cells, gpu=GpuConfig())
        found[name] = {stage: 1e6 * share / seen.cells_per_core_second for stage, share in seen.stages.items()}
    return found


def mixed(selection: Selection, batch_size: int) -> list[dict[str, Any]]:
    """Return the entropy within the batches of each worker of 1, 8 and 64, as a share of random ones, by label.

    Beside it: how far the worker with most tokens is behind the mean in each step, and what its passes lose that are
    shorter than its longest, if none is longer than `_CAPACITY` tokens.
    """
    names = ("dataset", "donor")
    values = {name: sorted({str(value) for part in selection.column(name) for value in part}) for name in names}
    labels = {name: (name, values[name]) for name in names}
    found = []
    for world_size in (1, 8, 64):
        sizes: list[int] = []
        codes: dict[str, list[Any]] = {name: [] for name in names}
        steps: list[list[npt.NDArray[np.int64]]] = []
        for rank in range(world_size):
            # As many lanes as the largest number of workers needs: the order of an epoch is that of the first row.
            config = StreamConfig(batch_size=batch_size, lanes=64)
            stream = Stream(selection, RawCounts(), config, rank=rank, world_size=world_size, labels=labels)
            steps.append([])
            for batch in stream.epoch(0):
                steps[-1].append(np.minimum(batch.lengths, _LONGEST))
                sizes.append(batch.n_cells)
                for name in names:
                    codes[name].append(batch.labels[name])
        tokens = [[int(lengths.sum()) for lengths in step] for step in zip(*steps, strict=True)]
        passes = [_passes(step) for step in zip(*steps, strict=True)]
        row: dict[str, Any] = {
            "workers": world_size,
            "cells_of_a_worker": max(sizes),
            "straggler_ratio": straggler_ratio(np.array(tokens, np.int64)),
            "micro_batches": float(np.mean([step.shape[1] for step in passes])),
            "waste_of_micro_batches": unused(passes),
        }
        for name in names:
            every = np.concatenate(codes[name])
            population = np.bincount(every, minlength=len(values[name])).astype(np.int64)
            row[name] = mixing(every, np.array(sizes, np.int64), population)
        found.append(row)
    return found


def _passes(step: Sequence[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    """Return the tokens of the forward passes of a step, int64 [workers, passes], by the lengths of their cells."""
    parts = max(micro_batch_count(lengths, _CAPACITY) for lengths in step)
    cut = [[int(lengths[part].sum()) for part in split_cells(lengths, parts, _CAPACITY)] for lengths in step]
    return np.array(cut, np.int64)


def show(found: dict[str, Any]) -> None:
    """Print the tables."""
    print(f"\n{found['cells']:,} cells in {found['datasets']} data sets, {found['genes_per_cell']:,.0f} genes a cell")
    print(f"{'':42}{'cells/CPU-s':>12}{'us/cell':>9}{'worst':>10}{'best':>10}{'cells/s':>10}{'peak GB':>9}")
    for row in found["rows"]:
        numbers = (row[key] for key in ("cells_per_cpu_second", "us_per_cell", "worst", "best", "cells_per_second"))
        widths = ((12, 0), (9, 1), (10, 0), (10, 0), (10, 0))
        rates = "".join(f"{number:>{w},.{d}f}" for number, (w, d) in zip(numbers, widths, strict=True))
        print(f"{row['label']:42}{rates}{row['peak_gb']:>9.2f}")
    for name, costs in found["stages_us_per_cell"].items():
        print(f"us a cell, {name}: " + ", ".join(f"{stage} {us:.1f}" for stage, us in costs.items()))
    for row in found["mixing"]:
        print(
            f"{row['workers']:>3} workers, {row['cells_of_a_worker']} cells each: entropy of donors {row['donor']:.2%} "
            f"of random, of data sets {row['dataset']:.2%}; the slowest has {row['straggler_ratio']:.3f} times the "
            f"tokens of the mean; {row['micro_batches']:.1f} micro-batches waste {row['waste_of_micro_batches']:.2%}"
        )
    show_goals(found["goals"])
    for note in found["notes"]:
        print(note)


if __name__ == "__main__":
    main()
