"""Speed and memory of the ingestion, beside other writers and the floor: ``python -m benchmarks.ingest``.

A synthetic atlas is written as h5ad, plain and gzipped. Every row runs in a process of its own, rows take turns in
rounds, and the table shows medians. CPU time is user and system time of the whole process tree. What is imported,
compiled and started once is no part of it, for any row. Before each row memory is touched and freed, for on a virtual
machine the first touch of a page is paid to the host, by whoever comes first.
``--cells 20000 --rounds 1 --no-ray`` takes about a minute.

Peers live in a virtual environment of their own (``--peers``, Python 3.12), which is made where that Python is there;
rows that cannot run are left out, and the output says why.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
from benchmarks.ingest_inputs import write_h5ad
from benchmarks.report import at_least, at_most, machine, save, show_goals, versions

WARM_UP_CELLS = 8000
PACKAGES = ("annbatch==0.3.*", "zarrs", "datasets", "pyarrow")
COMPRESSIONS = {"plain": None, "gzip": "gzip"}
ROWS = {
    "floor": "floor: decode, encode the same bytes",
    "floor_narrow": "the same of narrowed bytes",
    "local": "Cellmill, in process",
    "ray": "Cellmill, through Ray",
}
PEERS = {"annbatch": "annbatch 0.3, its writer", "scbank": "scBank, its documented layout"}
TWO_MILLION = 2_000_000
_MOST_TOUCHED = 10 << 30


def main() -> None:
    """Make inputs, measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=200_000)
    parser.add_argument("--scbank-cells", type=int, default=50_000, help="fewer, for it holds several copies in memory")
    parser.add_argument("--memory-cells", type=int, nargs="*", default=[20_000, 200_000, 600_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-ray", action="store_true", help="leave out the rows through Ray")
    parser.add_argument("--no-peers", action="store_true", help="leave out other writers")
    parser.add_argument("--peers", type=Path, default=Path("~/.cache/cellmill/benchmark-peers").expanduser())
    parser.add_argument("--folder", type=Path, help="where inputs are kept; by default they are temporary")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/ingest.json"))
    options = parser.parse_args()
    with TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        rows, notes = throughput(options, folder)
        memory = memory_by_size(options.memory_cells, folder)
    found = {
        "machine": machine(),
        "versions": versions("cellmill", "zarr", "numcodecs", "h5py", "ray", "anndata"),
        "cells": options.cells,
        "rounds": options.rounds,
        "rows": rows,
        "memory": memory,
        "notes": notes,
        "goals": goals(rows, memory, options.cells),
    }
    show(found)
    save(found, options.output)


def throughput(options: argparse.Namespace, folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the measured rows, and what was left out."""
    python, notes = (None, ["Other writers were left out."]) if options.no_peers else peers_python(options.peers)
    plan = [
        (name, label, options.cells, sys.executable, ["-m", "benchmarks.ingest_rows"])
        for name, label in ROWS.items()
        if not (options.no_ray and name == "ray")
    ]
    if python is not None:
        script = [str(Path(__file__).with_name("peers.py"))]
        sizes = {"annbatch": options.cells, "scbank": min(options.cells, options.scbank_cells)}
        plan += [(name, label, sizes[name], str(python), script) for name, label in PEERS.items()]
    seen: dict[tuple[str, str], list[dict[str, float]]] = {}
    for number in range(options.rounds):
        for kind in COMPRESSIONS:
            for name, _, cells, interpreter, script in plan:
                print(f"round {number + 1}: {name}, {kind}", file=sys.stderr)
                try:
                    result = run(interpreter, script, name, kind, cells, folder)
                except subprocess.CalledProcessError as error:
                    lines = str(error.stderr).strip().splitlines()
                    notes.append(f"{name}, {kind}: failed ({lines[-1] if lines else error}).")
                    continue
                seen.setdefault((name, kind), []).append(result)
    rows = []
    for (name, kind), results in seen.items():
        label, cells = next((label, cells) for row, label, cells, *_ in plan if row == name)
        rates = [cells / result["cpu_s"] for result in results]
        rows.append(
            {
                "name": name,
                "label": label,
                "input": kind,
                "cells": cells,
                "cells_per_cpu_second": float(np.median(rates)),
                "worst": min(rates),
                "best": max(rates),
                "us_per_cell": 1e6 / float(np.median(rates)),
                "cells_per_second": float(np.median([cells / result["wall_s"] for result in results])),
                "peak_gb": max(result["peak_gb"] for result in results),
            }
        )
    return rows, notes


def memory_by_size(sizes: list[int], folder: Path) -> list[dict[str, float]]:
    """Return the peak memory of an ingestion in process, by number of cells."""
    found = []
    for cells in sorted(sizes):
        print(f"memory: {cells:,} cells", file=sys.stderr)
        result = run(sys.executable, ["-m", "benchmarks.ingest_rows"], "local", "plain", cells, folder)
        found.append({"cells": cells, "peak_gb": result["peak_gb"], "cells_per_cpu_second": cells / result["cpu_s"]})
    return found


def run(interpreter: str, script: list[str], name: str, kind: str, cells: int, folder: Path) -> dict[str, float]:
    """Measure one row once."""
    inputs = []
    for n in (WARM_UP_CELLS, cells):
        path = folder / f"{n}-{kind}.h5ad"
        write_h5ad(path, n, COMPRESSIONS[kind])
        inputs.append(str(path))
    touch_memory()
    own = interpreter == sys.executable
    environment = {key: value for key, value in os.environ.items() if own or key != "PYTHONPATH"}
    with TemporaryDirectory(dir=folder) as out:
        command = [interpreter, *script, name, *inputs, out]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    measured: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return measured


def touch_memory() -> None:
    """Touch half of the memory that is free, and free it again."""
    size = min(_MOST_TOUCHED, psutil.virtual_memory().available // 2)
    with mmap.mmap(-1, size) as pages:
        for at in range(0, size, mmap.PAGESIZE):
            pages[at] = 1


def peers_python(folder: Path) -> tuple[Path | None, list[str]]:
    """Return the interpreter of the peers' environment, making it if need be, or why there is none."""
    python = folder / "bin/python"
    if python.exists():
        return python, []
    # The first that runs: what stands in the path may be a stand-in of a version manager.
    places = [shutil.which("python3.12"), *map(str, Path.home().glob(".pyenv/versions/3.12*/bin/python"))]
    base = next((place for place in places if place and not subprocess.run([place, "-c", ""]).returncode), None)
    if base is None:
        return None, ["There is no Python 3.12, which annbatch needs: other writers were left out."]
    try:
        subprocess.run([base, "-m", "venv", str(folder)], check=True, capture_output=True, text=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES], check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        shutil.rmtree(folder, ignore_errors=True)
        return None, [f"Other writers could not be installed: {str(error.stderr).strip().splitlines()[-1:]}"]
    return python, []


def goals(rows: list[dict[str, Any]], memory: list[dict[str, float]], cells: int) -> list[dict[str, Any]]:
    """Return what was to be reached, and whether it was; only of what was measured."""
    rate = {(row["name"], row["input"]): row["cells_per_cpu_second"] for row in rows}
    found = []

    for kind in COMPRESSIONS:
        peers = {name: rate[name, kind] for name in PEERS if (name, kind) in rate}
        for name in ("local", "ray"):
            if peers and (name, kind) in rate:
                fastest = max(peers, key=lambda peer: peers[peer])
                value = rate[name, kind] / peers[fastest]
                text = f"{ROWS[name]}, {kind} h5ad of {cells:,} cells, beside {PEERS[fastest]}"
                found.append(at_least(f"speed beside the fastest peer: {name}, {kind}", 2.0, value, "times", text))
            if (name, kind) in rate and ("floor", kind) in rate:
                value = rate["floor", kind] / rate[name, kind]
                text = f"{ROWS[name]}, {kind} h5ad of {cells:,} cells, beside {ROWS['floor']}"
                found.append(at_most(f"time beside the floor: {name}, {kind}", 3.0, value, "times", text))
    if len(memory) > 1:
        (first, last), base = memory[-2:], memory[0]
        slope = (last["peak_gb"] - first["peak_gb"]) / (last["cells"] - first["cells"])
        at_end = last["peak_gb"] + max(0.0, slope) * max(0, TWO_MILLION - last["cells"])
        text = f"peak at {int(base['cells']):,} cells {base['peak_gb']:.2f} GB; at 2,000,000 extrapolated from "
        text += " and ".join(f"{int(size['cells']):,} ({size['peak_gb']:.2f} GB)" for size in (first, last))
        value = at_end - base["peak_gb"]
        found.append(at_most("memory from the smallest to 2,000,000 cells", 1.024, value, "GB more", text))
    return found


def show(found: dict[str, Any]) -> None:
    """Print the tables."""
    for kind in COMPRESSIONS:
        print(f"\n{found['cells']:,} cells, {kind} h5ad")
        print(f"{'':36}{'cells/CPU-s':>12}{'us/cell':>9}{'worst':>9}{'best':>9}{'cells/s':>9}{'peak GB':>9}")
        for row in found["rows"]:
            if row["input"] == kind:
                label = row["label"] + (f" ({row['cells']:,} cells)" if row["cells"] != found["cells"] else "")
                numbers = (row[key] for key in ("cells_per_cpu_second", "us_per_cell", "worst", "best"))
                rates = "".join(f"{n:>{w},.{d}f}" for n, w, d in zip(numbers, (12, 9, 9, 9), (0, 1, 0, 0), strict=True))
                print(f"{label:36}{rates}{row['cells_per_second']:>9,.0f}{row['peak_gb']:>9.2f}")
    print()
    for size in found["memory"]:
        print(f"{int(size['cells']):>12,} cells: peak {size['peak_gb']:.2f} GB")
    show_goals(found["goals"])
    for note in found["notes"]:
        print(note)


if __name__ == "__main__":
    main()
