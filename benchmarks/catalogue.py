"""A catalogue of a billion cells, seconds and memory to open and query it: ``python -m benchmarks.catalogue --help``.

Only metadata is there, and it is synthetic: a few hundred distinct files of 65,536 cells each stand under the names of
all shards (hard links), with content hashes and text of the file's own data set that are the same throughout, so that
the files are small. Each line is measured in a process of its own, imports left out of the seconds and left in the
memory. The files are in the machine's page cache: on a cold disk or in an object store the bytes that are read, which
are told, come on top.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from benchmarks.report import at_most, machine, save, show_goals, versions

SHARD = 65_536
LICENCES = ("CC0-1.0", "CC-BY-4.0", "MIT", "CC-BY-NC-4.0")
N_TYPES, N_TISSUES, N_ASSAYS, N_DONORS = 40, 20, 6, 8
COMMITS = 50
COUNTED = ("tissue", "donor_id", "cell_type", "is_primary_data")


def kind_table(kind: int) -> pa.Table:
    """Return the metadata of one kind of shard."""
    rng = np.random.default_rng(kind)
    rows = np.arange(SHARD)
    genes = np.clip(rng.lognormal(np.log(1500), 0.6, SHARD), 200, 12_000).astype(np.int32)
    return pa.table(
        {
            "cell_id": (rows + kind * SHARD).astype(np.uint64),
            "dataset": ["synthetic"] * SHARD,
            "shard": ["synthetic"] * SHARD,
            "row": rows.astype(np.int32),
            "barcode": [f"cell{i}-1" for i in range(SHARD)],
            "source_row": rows,
            "n_genes": genes,
            "n_features": genes,
            "n_counts": genes.astype(np.int64) * 2,
            "mito_share": rng.random(SHARD).astype(np.float32),
            "content_hash": pa.array([bytes(16)] * SHARD, pa.binary(16)),
            "donor_id": [f"kind{kind}-donor{i}" for i in rng.integers(0, N_DONORS, SHARD)],
            "cell_type": [f"type {i}" for i in rng.integers(0, N_TYPES, SHARD)],
            "tissue": [f"tissue {kind % N_TISSUES}"] * SHARD,
            "assay": [f"assay {kind % N_ASSAYS}"] * SHARD,
            "is_primary_data": rng.random(SHARD) < 0.5,
        }
    )


def write(folder: str, n_shards: int, n_kinds: int, n_sets: int) -> None:
    """Write the catalogue."""
    from cellmill.atlas import Atlas, ShardEntry
    from cellmill.atlas.cells import write_cells
    from cellmill.atlas.summary import summarise

    atlas = Atlas.create(folder)
    root = Path(folder)
    told = []
    shards_of = np.bincount(np.arange(n_shards) % n_kinds, minlength=n_kinds)
    counts: dict[str, Counter[str]] = {name: Counter() for name in COUNTED}
    for kind in range(n_kinds):
        table = kind_table(kind)
        for name, total in counts.items():
            for item in table.column(name).value_counts().to_pylist():
                total[str(item["values"])] += item["counts"] * int(shards_of[kind])
        write_cells(atlas.storage, f"kinds/{kind}.parquet", table)
        told.append(summarise(table))
    (root / "counts.json").write_text(json.dumps(counts))
    entries = []
    for number in range(n_shards):
        kind, of = number % n_kinds, number * n_sets // n_shards
        dataset, digest = f"set{of:05}", f"{number:032x}"
        (root / "cells" / dataset).mkdir(parents=True, exist_ok=True)
        os.link(root / f"kinds/{kind}.parquet", root / f"cells/{dataset}/{digest}.parquet")
        entries.append(
            ShardEntry(
                dataset=dataset,
                digest=digest,
                n_cells=SHARD,
                n_rows=SHARD,
                n_features=20_000,
                nnz=SHARD * 1500,
                max_features=12_000,
                bytes=1,
                checksum=digest * 2,
                organism="human",
                source_url=f"s3://bucket/{dataset}.h5ad",
                source_digest=f"{of:064x}",
                licence=LICENCES[of % len(LICENCES)],
                config_digest=f"{of:064x}",
                recipe=1,
                vocabulary_size=20_000,
                vocabulary_digest="0" * 64,
                **told[kind],
            )
        )
    each = -(-len(entries) // COMMITS)
    for start in range(0, len(entries), each):
        atlas.commit(entries[start : start + each], message="synthetic")


def opened(folder: str) -> Any:
    """Return the newest snapshot."""
    from cellmill.atlas import Atlas

    return Atlas.open(folder).snapshot()


def measure(folder: str, name: str, answer: Any) -> None:
    """Run one query, and send what it took and what it found."""
    # So that importing is not timed.
    import cellmill.atlas.atlas
    import cellmill.atlas.selection  # noqa: F401

    how, argument = QUERIES[name]
    snapshot = opened(folder) if how is not None else None
    began = time.perf_counter()
    found = opened(folder).n_cells if how is None else how(snapshot, argument)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    answer.put({"seconds": seconds, "peak_gb": peak, "found": found})


def select(snapshot: Any, where: str) -> int:
    return int(snapshot.select(where).n_cells)


def count(snapshot: Any, column: str) -> dict[str, int]:
    return {str(value): n for value, n in snapshot.select().value_counts(column).items()}


def columns(snapshot: Any, _: str) -> int:
    return len(snapshot.columns)


QUERIES: dict[str, tuple[Callable[[Any, str], Any] | None, str]] = {
    "open, newest snapshot": (None, ""),
    "columns and their types": (columns, ""),
    "a data set": (select, "dataset = 'set00007'"),
    "a licence": (select, "licence in ['CC0-1.0', 'MIT']"),
    "a tissue (bounds decide)": (select, "tissue = 'tissue 7'"),
    "a donor (bounds leave some shards)": (select, "donor_id = 'kind17-donor3'"),
    "a cell type (every shard is read)": (select, "cell_type = 'type 7'"),
    "half of all cells": (select, "is_primary_data"),
    "count by tissue": (count, "tissue"),
    "count by cell type": (count, "cell_type"),
}
READ = {
    "a cell type (every shard is read)": "cell_type",
    "half of all cells": "is_primary_data",
    "count by cell type": "cell_type",
}


def expected(name: str, counts: dict[str, dict[str, int]], n_shards: int, n_sets: int) -> Any:
    """Return what a query must find, from the values that were written."""
    of = np.arange(n_shards) * n_sets // n_shards
    match name:
        case "open, newest snapshot":
            return n_shards * SHARD
        case "columns and their types":
            return 20
        case "a data set":
            return int((of == 7).sum()) * SHARD
        case "a licence":
            return int(np.isin(of % len(LICENCES), [0, 2]).sum()) * SHARD
        case "a tissue (bounds decide)":
            return counts["tissue"].get("tissue 7", 0)
        case "a donor (bounds leave some shards)":
            return counts["donor_id"].get("kind17-donor3", 0)
        case "a cell type (every shard is read)":
            return counts["cell_type"]["type 7"]
        case "half of all cells":
            return counts["is_primary_data"]["True"]
        case "count by tissue":
            return counts["tissue"]
        case _:
            return counts["cell_type"]


def in_child(function: Any, *arguments: Any) -> Any:
    """Run a function in a process of its own, and return its answer if it gives one."""
    context = multiprocessing.get_context("spawn")
    answer = context.SimpleQueue()
    child = context.Process(target=function, args=(*arguments, *((answer,) if function is measure else ())))
    child.start()
    found = answer.get() if function is measure else None
    child.join()
    if child.exitcode:
        raise SystemExit(f"{function.__name__} ended with {child.exitcode}")
    return found


def command(folder: str) -> float:
    """Return the seconds of the command that counts cells by a column, the interpreter's start included."""
    began = time.perf_counter()
    line = [sys.executable, "-m", "cellmill", "atlas", "query", folder, "--count", "cell_type", "--json"]
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=10**9)
    parser.add_argument("--kinds", type=int, default=200, help="distinct files of metadata")
    parser.add_argument("--sets", type=int, default=2000, help="data sets")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/catalogue.json"))
    options = parser.parse_args()
    n_shards = -(-options.cells // SHARD)
    sizes = (n_shards, min(options.kinds, n_shards), min(options.sets, n_shards))
    rows = []
    with TemporaryDirectory(prefix="catalogue-") as folder:
        in_child(write, folder, *sizes)
        catalog = sum(path.stat().st_size for path in (Path(folder) / "catalog").rglob("*.parquet"))
        footer = pq.read_metadata(Path(folder) / "kinds/0.parquet")
        stored: Counter[str] = Counter()
        for group in map(footer.row_group, range(footer.num_row_groups)):
            for column in map(group.column, range(footer.num_columns)):
                stored[column.path_in_schema] += column.total_compressed_size
        counts = json.loads((Path(folder) / "counts.json").read_text())
        for name in QUERIES:
            found = in_child(measure, folder, name)
            if (was := found.pop("found")) != (wanted := expected(name, counts, sizes[0], sizes[2])):
                raise SystemExit(f"{name}: found {was}, not {wanted}")
            read = stored[READ[name]] * n_shards if name in READ else 0
            rows.append({"query": name, **found, "cells": was if isinstance(was, int) else None, "bytes_read": read})
            print(json.dumps(rows[-1]), flush=True)
        seconds = command(folder)
    peak, slowest = max(row["peak_gb"] for row in rows), max(row["seconds"] for row in rows)
    told = max(row["seconds"] for row in rows if not row["bytes_read"])
    cells = f"{n_shards * SHARD:,} cells"
    goals = [
        at_most("peak memory of any query", 2.0, peak, "GB", cells),
        at_most("seconds of what the catalog decides", 10.0, told, "s", cells),
        at_most("seconds of any query", 300.0, slowest, "s", cells),
    ]
    result = {
        "machine": machine(),
        "versions": versions("cellmill", "numpy", "pyarrow", "deltalake"),
        "cells": n_shards * SHARD,
        "shards": n_shards,
        "distinct_files": sizes[1],
        "datasets": sizes[2],
        "catalog_bytes": catalog,
        "rows": rows,
        "command_seconds": seconds,
        "goals": goals,
    }
    save(result, options.output)
    print(f"{n_shards * SHARD:,} cells in {n_shards:,} shards; catalog {catalog / 1e6:,.1f} MB")
    print(f"{'':38}{'seconds':>9}{'GB peak':>9}{'MB read':>9}{'cells':>15}")
    for row in rows:
        shown = "" if row["cells"] is None or row["cells"] < 1000 else f"{row['cells']:,}"
        print(
            f"{row['query']:38}{row['seconds']:>9.2f}{row['peak_gb']:>9.2f}{row['bytes_read'] / 1e6:>9,.0f}{shown:>15}"
        )
    print(f"{'cellmill atlas query --count cell_type':38}{seconds:>9.2f}")
    show_goals(goals)


if __name__ == "__main__":
    main()
