"""Finding duplicates among very many cells: seconds, memory and bytes read: ``python -m benchmarks.hash_index --help``.

The index holds synthetic hashes, in one run, in as many runs as there are data sets (never merged), and in the tiers
that ingesting one data set after the other leaves. Against each comes a new data set, a tenth of whose cells are
there already; each search is a process of its own, whose peak memory is told, imports included. The runs that are never
merged are only searched, for writing would merge them. What is said of an index ten times as large is extrapolated from
these by the arithmetic that the output states.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import shutil
import time
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pyarrow as pa
from benchmarks.report import at_least, at_most, machine, save, show_goals, versions

RECORD, FENCE_EVERY, WINDOW = 24, 1024, 128
SLICE = 1 << 20
SHARD = 65_536


def hashes(run: int, n: int, number: int) -> Any:
    """Return one slice of the n hashes of a run, ascending: the same whenever it is asked for."""
    n_slices = -(-n // SLICE)
    rng = np.random.default_rng([7, run, number])
    low, high = ((1 << 64) * i // n_slices for i in (number, number + 1))
    size = n * (number + 1) // n_slices - n * number // n_slices
    found = rng.integers(0, 1 << 64, (size, 2), dtype=np.uint64)
    found[:, 0] = np.sort(rng.integers(low, high, size, dtype=np.uint64))
    return found


def write_index(folder: str, sizes: list[list[int]]) -> None:
    """Write an index of runs, each a list of its members' sizes, and its catalog rows."""
    from cellmill.atlas.hash_run import Member, run_name
    from cellmill.atlas.hash_run_writing import encoded

    (Path(folder) / "hashes").mkdir(parents=True)
    rows, number = [], 0
    for i, run in enumerate(sizes):
        members = [Member(f"set{number + j:06}", f"{number + j:032x}", "") for j in range(len(run))]
        number += len(run)
        name, n = run_name(members), sum(run)
        rows += [[*member[:2], size, name] for member, size in zip(members, run, strict=True)]

        def blocks(i: int = i, n: int = n, k: int = len(run)) -> Any:
            for j in range(-(-n // SLICE)):
                found = hashes(i, n, j)
                yield np.column_stack([found, np.random.default_rng(j).integers(0, k, len(found), dtype=np.uint64)])

        with (Path(folder) / "hashes" / name).open("wb") as file:
            file.writelines(encoded(blocks(), members))
    (Path(folder) / "rows.json").write_text(json.dumps(rows))


def write_new(folder: str, name: str, n: int, sizes: list[list[int]]) -> None:
    """Write the metadata of a new data set, a tenth of whose cells are in the index."""
    from cellmill.atlas.cells import write_cells
    from cellmill.atlas.content import hash_bytes
    from cellmill.storage import Storage

    rng = np.random.default_rng(n)
    used: dict[tuple[int, int], int] = {}
    for number, start in enumerate(range(0, n, SHARD)):
        size = min(SHARD, n - start)
        own = rng.integers(0, 1 << 64, (size, 2), dtype=np.uint64)
        old = np.arange(0, size, 10)
        run = int(rng.integers(len(sizes)))
        members = sum(sizes[run])
        known = hashes(run, members, piece := int(rng.integers(-(-members // SLICE))))
        first = used.get((run, piece), 0)
        old = old[: len(known) - first]
        own[old] = known[first : first + old.size]
        used[run, piece] = first + old.size
        table = pa.table(
            {
                "barcode": [f"{start + i:016x}-1" for i in range(size)],
                "source_row": np.arange(start, start + size),
                "n_genes": np.full(size, 1500, np.int32),
                "content_hash": pa.Array.from_buffers(pa.binary(16), size, [None, pa.py_buffer(hash_bytes(own))]),
            }
        )
        write_cells(Storage.open(folder), f"cells/{name}/{number:08}.parquet", table)
    (Path(folder) / f"{name}.json").write_text(json.dumps(sum(used.values())))


def row(dataset: str, digest: str, n: int, run: str) -> Any:
    """Return a row of the catalog."""
    from cellmill.atlas import ShardEntry

    text = dict.fromkeys(("checksum", "organism", "source_url", "source_digest", "licence", "config_digest"), "-")
    numbers = dict.fromkeys(("n_features", "nnz", "max_features", "bytes", "recipe", "vocabulary_size"), 1)
    own = {"dataset": dataset, "digest": digest, "n_cells": n, "n_rows": n, "hash_run": run, "vocabulary_digest": "-"}
    return ShardEntry.model_validate({**text, **numbers, **own})


def measure(folder: str, name: str, n: int, merges: bool, answer: Any) -> None:
    """Find the duplicates of a new data set, and send what that took."""
    from cellmill.atlas.hash_index import HashIndex
    from cellmill.ingestion.config import DuplicateConfig
    from cellmill.ingestion.duplicates import find_duplicates
    from cellmill.storage import Storage

    stay = [row(*item) for item in json.loads((Path(folder) / "rows.json").read_text())]
    new = [row(name, f"{i:08}", min(SHARD, n - start), "") for i, start in enumerate(range(0, n, SHARD))]
    wrote = {"seconds": 0.0}
    original = HashIndex.add

    def timed(index: Any, entries: Any) -> Any:
        if not merges:
            return {entry.key: entry for entry in entries}
        began = time.perf_counter()
        found = original(index, entries)
        wrote["seconds"] = time.perf_counter() - began
        return found

    HashIndex.add = timed  # type: ignore[method-assign]
    began = time.perf_counter()
    found = find_duplicates(Storage.open(folder), new, stay, [], DuplicateConfig())
    seconds = time.perf_counter() - began
    names = {entry.hash_run for entry in found.entries} - {""}
    changed = {entry.key for entry in found.changed}
    wanted = json.loads((Path(folder) / f"{name}.json").read_text())
    answer.put(
        {
            "search_seconds": seconds - wrote["seconds"],
            "write_seconds": wrote["seconds"] if merges else None,
            "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
            "bytes_read": found.bytes_read,
            "bytes_written": sum((Path(folder) / "hashes" / run).stat().st_size for run in names),
            "runs_merged": len({entry.hash_run for entry in stay if entry.key in changed}),
            "known": wanted,
            "found": sum(counts.total() for counts in found.duplicates.values()),
        }
    )
    for run in names:
        (Path(folder) / "hashes" / run).unlink()


def in_child(function: Any, *arguments: Any) -> Any:
    """Run a function in a process of its own, whose memory is not that of another."""
    context = multiprocessing.get_context("spawn")
    answer = context.SimpleQueue()
    needs = (answer,) if function is measure else ()
    child = context.Process(target=function, args=(*arguments, *needs))
    child.start()
    found = answer.get() if function is measure else None
    child.join()
    if child.exitcode:
        raise SystemExit(f"{function.__name__} ended with {child.exitcode}")
    return found


def tiers(n_sets: int, size: int) -> list[list[int]]:
    """Return the runs that ingesting data sets of one size, one after the other, leaves."""
    from cellmill.atlas.hash_index import merged_runs

    runs: dict[str, list[int]] = {}
    for number in range(n_sets):
        taken = merged_runs(size, {name: sum(members) for name, members in runs.items()})
        members = [size, *(n for name in taken for n in runs.pop(name))]
        runs[f"{number:08}"] = members
    return list(runs.values())


def most_bytes(new: int, runs: list[int]) -> float:
    """Return the bytes that a search reads at most, but for the names of members.

    Of a run of N records of 24 bytes: one record in 1,024, and for each new hash a window of 128 records; never more
    than all of it.
    """
    return float(sum(n * RECORD / FENCE_EVERY + min(new * WINDOW, n) * RECORD for n in runs))


def report(rows: list[dict[str, Any]], layouts: dict[str, list[list[int]]], total: int) -> dict[str, Any]:
    """Return what was measured, what follows for ten times the hashes, and the goals."""
    bigger = 10 * total
    runs = {
        "one run": [bigger],
        "tiers": [sum(run) for run in tiers(2 * len(layouts["one run"][0]), 5 * total // len(layouts["one run"][0]))],
    }
    extrapolated = []
    for found in rows:
        if found["index"] in runs:
            wide = runs[found["index"]]
            read = most_bytes(found["new_cells"], wide)
            more = read / found["bytes_read"]
            fences = (sum(wide) - total) * RECORD / FENCE_EVERY
            extrapolated.append(
                {
                    "index": found["index"],
                    "runs": len(wide),
                    "hashes": bigger,
                    "new_cells": found["new_cells"],
                    "bytes_read": read,
                    "search_seconds": found["search_seconds"] * max(1.0, more),
                    "peak_gb": found["peak_gb"] + fences / 1e9,
                }
            )
    peak = max(found["peak_gb"] for found in rows)
    wider = max(found["peak_gb"] for found in extrapolated)
    recall = min(found["found"] / found["known"] for found in rows)
    goals = [
        at_most("peak memory", 1.0, peak, "GB", f"{total:,} hashes"),
        at_most("peak memory", 1.0, wider, "GB", f"{bigger:,} hashes, by arithmetic"),
        at_least("duplicates found", 1.0, recall, "of those there are", f"{total:,} hashes"),
    ]
    return {
        "machine": machine(),
        "versions": versions("cellmill", "numpy", "numba", "pyarrow", "obstore"),
        "hashes": total,
        "rows": rows,
        "arithmetic": {
            "bytes_read": "sum over runs of N * 24 / 1024 + min(new * 128, N) * 24",
            "search_seconds": "measured seconds * bytes extrapolated / bytes measured",
            "peak_gb": "measured + 24 / 1024 bytes for each further hash",
            "runs": "one, or those that 2,000 data sets of equal size leave",
        },
        "extrapolated": extrapolated,
        "goals": goals,
    }


def show(result: dict[str, Any]) -> None:
    """Print tables."""
    print(f"{'index':>14}{'runs':>6}{'new cells':>12}{'search s':>10}{'write s':>9}{'GB peak':>9}{'MB read':>10}")
    for kind in ("rows", "extrapolated"):
        print(f"{result['hashes'] * (1 if kind == 'rows' else 10):,} hashes" + (", by arithmetic" * (kind != "rows")))
        for found in result[kind]:
            wrote = f"{found['write_seconds']:.2f}" if found.get("write_seconds") is not None else ""
            print(
                f"{found['index']:>14}{found['runs']:>6}{found['new_cells']:>12,}{found['search_seconds']:>10.2f}"
                f"{wrote:>9}{found['peak_gb']:>9.2f}{found['bytes_read'] / 1e6:>10,.1f}"
            )
    show_goals(result["goals"])


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hashes", type=int, default=100_000_000, help="hashes in the index")
    parser.add_argument("--sets", type=int, default=1000, help="data sets they are of")
    parser.add_argument("--new", type=int, nargs="+", default=[10**4, 10**5, 10**6, 10**7], help="cells that are new")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/hash_index.json"))
    options = parser.parse_args()
    total, n_sets = options.hashes, options.sets
    each = total // n_sets
    layouts = {
        "one run": [[each] * n_sets],
        "tiers": tiers(n_sets, each),
        f"{n_sets:,} runs": [[each]] * n_sets,
    }
    root = Path(mkdtemp(prefix="hash-index-"))
    rows: list[dict[str, Any]] = []
    try:
        # So that compiling is not timed.
        for sizes in ([[10**6]], [[1000]]):
            in_child(write_index, str(root / "small"), sizes)
            in_child(write_new, str(root / "small"), "new", 1000, sizes)
            in_child(measure, str(root / "small"), "new", 1000, True)
            shutil.rmtree(root / "small")
        for layout, sizes in layouts.items():
            folder = root / "index"
            in_child(write_index, str(folder), sizes)
            for n in options.new:
                in_child(write_new, str(folder), f"new{n}", n, sizes)
                found = in_child(measure, str(folder), f"new{n}", n, len(sizes) < n_sets)
                rows.append({"index": layout, "runs": len(sizes), "new_cells": n, **found})
                print(json.dumps(rows[-1]), flush=True)
            shutil.rmtree(folder)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    result = report(rows, layouts, total)
    save(result, options.output)
    show(result)


if __name__ == "__main__":
    main()
