"""One measurement in a process of its own: ``python -m benchmarks.ingest_rows NAME WARM_UP.h5ad INPUT.h5ad FOLDER``.

Prints CPU seconds of the whole process tree, seconds, and the peak memory of its largest process as JSON. What is
imported, compiled and started once is no part of it: a small input goes before.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import psutil
from numcodecs import blosc

from cellmill.atlas.layout import BLOSC, CHUNK
from cellmill.cluster import ClusterConfig, connect
from cellmill.ingestion import IngestConfig, SourceConfig, ingest
from cellmill.ingestion.sources.vector import Vector

_ENTRIES_AT_ONCE = 1 << 20


def local(source: str, folder: Path, warming: bool) -> None:
    """Ingest in this process."""
    _ingest(source, folder, "local", warming)


def ray(source: str, folder: Path, warming: bool) -> None:
    """Ingest through Ray."""
    _ingest(source, folder, "ray", warming)


def _ingest(source: str, folder: Path, backend: str, warming: bool) -> None:
    sources = (SourceConfig(path=source, organism="human", licence="CC0-1.0", obs={"donor": "donor"}),)
    # In many tasks, so that every worker of a cluster has run one of each kind.
    small = {"task_memory_mb": 64, "shard_cells": 1000} if warming else {}
    settings = {"atlas": str(folder / "atlas"), "sources": sources, "backend": backend, **small}
    ingest(IngestConfig.model_validate(settings))


def floor(source: str, folder: Path, warming: bool) -> None:
    """Read counts and genes, decode them, compress the same bytes as shards are, write them."""
    _recode(source, folder, None)


def floor_narrow(source: str, folder: Path, warming: bool) -> None:
    """Do the same with both as 16 bits."""
    _recode(source, folder, np.dtype(np.uint16))


def _recode(source: str, folder: Path, dtype: np.dtype[np.uint16] | None) -> None:
    with h5py.File(source) as file, (folder / "floor").open("wb") as sink:
        for name in ("indices", "data"):
            array = Vector(file["X"][name])
            size = file["X"][name].size
            for start in range(0, size, _ENTRIES_AT_ONCE):
                values = array.read(start, min(start + _ENTRIES_AT_ONCE, size))
                values = values if dtype is None else values.astype(dtype)
                for first in range(0, values.size, CHUNK):
                    sink.write(blosc.compress(values[first : first + CHUNK], *BLOSC))


ROWS = {"local": local, "ray": ray, "floor": floor, "floor_narrow": floor_narrow}


def main() -> None:
    """Run one row on a small input, then on the one that is measured."""
    name, warm_up, source, folder = sys.argv[1:]
    if name == "ray":
        connect(ClusterConfig(address="local"))
    with contextlib.redirect_stdout(sys.stderr):
        for number, path in enumerate((warm_up, source)):
            target = Path(folder) / str(number)
            target.mkdir()
            cpu, start = cpu_seconds(), time.perf_counter()
            ROWS[name](path, target, number == 0)
            cpu, wall = cpu_seconds() - cpu, time.perf_counter() - start
    print(json.dumps({"cpu_s": cpu, "wall_s": wall, "peak_gb": peak_bytes() / 1e9}))


def cpu_seconds() -> float:
    """Return user and system time of this process and all below it, of those that ended too."""
    total = 0.0
    for process in _tree():
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def peak_bytes() -> int:
    """Return the largest peak of resident memory among the processes of the tree that run Python."""
    peaks = [0]
    for process in _tree():
        with contextlib.suppress(psutil.Error, OSError, StopIteration):
            text = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            peaks.append(1024 * int(next(line for line in text if line.startswith("VmHWM")).split()[1]))
    return max(peaks)


def _tree() -> list[psutil.Process]:
    me = psutil.Process()
    return [me, *me.children(recursive=True)]


if __name__ == "__main__":
    main()
