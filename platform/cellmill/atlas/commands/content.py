"""What a snapshot holds: show, query, read."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from cellmill.atlas.atlas import Atlas
from cellmill.atlas.commands.options import Json, Predicate, Version, Where_
from cellmill.atlas.snapshot import Snapshot
from cellmill.atlas.withdrawals import all_withdrawals
from cellmill.console import console, emit
from cellmill.errors import AtlasError, ConfigError


def show(
    atlas: Where_,
    dataset: Annotated[str, typer.Option(help="Show the reports of this data set instead.")] = "",
    version: Version = None,
    as_json: Json = False,
) -> None:
    """Show what a snapshot holds: data sets with licence and provenance, columns, withdrawals."""
    opened = Atlas.open(atlas)
    snapshot = opened.snapshot(version)
    if dataset:
        _show_reports(snapshot, dataset, as_json)
        return
    datasets = _datasets(snapshot)
    withdrawals = [
        {**withdrawal.model_dump(mode="json"), "lifted": lift.time if lift else None}
        for withdrawal, lift in all_withdrawals(opened.storage)
    ]
    payload = {
        "atlas": opened.url,
        "id": opened.id,
        "snapshot": snapshot.version,
        "cells": snapshot.n_cells,
        "features": len(opened.vocabulary().features),
        "datasets": datasets,
        "columns": {name: str(kind) for name, kind in snapshot.columns.items()},
        "withdrawals": withdrawals,
    }

    def render() -> None:
        console.print(
            Text.assemble(
                (opened.url, "bold"),
                f"  snapshot {snapshot.version}: {snapshot.n_cells:,} cells, ",
                f"{payload['features']:,} features in the vocabulary",
            )
        )
        table = Table("data set", "cells", "shards", "MB", "organism", "licence", "sources", box=None)
        for name, row in datasets.items():
            table.add_row(
                name,
                f"{row['cells']:,}",
                str(row["shards"]),
                f"{row['bytes'] / 1e6:,.1f}",
                row["organism"],
                row["licence"],
                ", ".join(f"{source['url'].rsplit('/', 1)[-1]} {source['digest'][:12]}" for source in row["sources"]),
            )
        console.print(table)
        kinds = [Text.assemble(f"{name} ", (str(kind), "dim")) for name, kind in snapshot.columns.items()]
        console.print(Text("Columns: ") + Text(", ").join(kinds))
        for line in withdrawals:
            state = f"lifted {line['lifted']}" if line["lifted"] else "holds"
            head = f"Withdrawal {line['number']} ({state}): {line['where']}  "
            console.print(Text.assemble(head, (line["reason"], "dim")))

    emit(payload, as_json, render)


def _datasets(snapshot: Snapshot) -> dict[str, dict[str, Any]]:
    datasets: dict[str, dict[str, Any]] = {}
    for entry in snapshot.shards:
        for part in entry.sources:
            row = datasets.setdefault(
                part.dataset,
                {
                    "cells": 0,
                    "shards": 0,
                    "bytes": 0,
                    "organism": part.organism,
                    "licence": "",
                    "sources": [],
                },
            )
            row["cells"] += part.n_cells
            # Of a shard that several data sets share, each has its share by cells.
            row["bytes"] += entry.bytes * part.n_rows // entry.n_rows
            source = {"url": part.source_url, "digest": part.source_digest, "licence": part.licence}
            if source not in row["sources"]:
                row["sources"].append(source)
        for name in entry.datasets:
            datasets[name]["shards"] += 1
    for row in datasets.values():
        row["licence"] = ", ".join(sorted({source["licence"] for source in row["sources"]}))
    return dict(sorted(datasets.items()))


def _show_reports(snapshot: Snapshot, dataset: str, as_json: bool) -> None:
    row = _datasets(snapshot).get(dataset)
    if row is None:
        raise AtlasError(
            f"Snapshot {snapshot.version} has no data set {dataset!r}.",
            where=snapshot.atlas.url,
            fix="`cellmill atlas show` lists them.",
        )
    storage = snapshot.atlas.storage
    keys = [f"reports/datasets/{dataset}/{source['digest'][:16]}.json" for source in row["sources"]]
    reports: list[dict[str, Any]] = [json.loads(storage.get(key)) for key in keys if storage.exists(key)]

    def render() -> None:
        facts = f"  {row['cells']:,} cells, {row['organism']}, licence {row['licence']}"
        console.print(Text.assemble((dataset, "bold"), facts))
        for report in reports:
            console.print(
                Text.assemble(f"{report['url']}  ", (f"BLAKE3 {report['source_digest']}", "dim")), soft_wrap=True
            )
            console.print(
                f"  counts in {report['counts']}; {report['cells_in']:,} cells in, {report['cells_out']:,} kept"
            )
            console.print(f"  licence {report['licence']}")
            for reason, n in report["dropped"].items():
                console.print(f"  {n:,} left out: {reason}")
            for place in report["unread"]:
                console.print(f"  not read: {place}")
            for number, column in report["untold"].items():
                console.print(f"  withdrawal {number} was not asked for want of {column}; exact copies were left out")
            genes = report["genes"]
            console.print(
                f"  {genes['genes_in']:,} features in, {genes['genes_out']:,} out, "
                f"{genes['umis_lost']:.2%} of UMIs lost"
            )

    emit({"snapshot": snapshot.version, "dataset": dataset, **row, "reports": reports}, as_json, render)


def query(
    atlas: Where_,
    where: Predicate = None,
    columns: Annotated[str, typer.Option(help="Columns to print, separated by commas.")] = "",
    count: Annotated[str, typer.Option(help="Count the cells by the values of this column instead.")] = "",
    limit: Annotated[int, typer.Option(help="Print at most so many cells.", min=0)] = 20,
    version: Version = None,
    as_json: Json = False,
) -> None:
    """Find cells by their metadata."""
    selection = Atlas.open(atlas).snapshot(version).select(where)
    if count:
        found: Counter[str] = Counter()
        for value, n in selection.value_counts(count).items():
            found["(missing)" if value is None else str(value)] += n

        def render_counts() -> None:
            table = Table(count, "cells", box=None)
            for value, n in found.items():
                table.add_row(value, f"{n:,}")
            console.print(table)

        emit({"cells": selection.n_cells, "column": count, "counts": found}, as_json, render_counts)
        return
    names = [name.strip() for name in columns.split(",") if name.strip()]
    names = names or ["cell_id", "dataset", "barcode", "n_genes", "n_counts"]
    rows = selection.head(names, limit).to_pylist()
    rows = [{key: value.hex() if isinstance(value, bytes) else value for key, value in row.items()} for row in rows]

    def render() -> None:
        table = Table(*names, box=None)
        for row in rows:
            table.add_row(*("" if row[name] is None else str(row[name]) for name in names))
        console.print(table)
        console.print(
            f"{selection.n_cells:,} cells" + (f", the first {limit} shown" if limit < selection.n_cells else "")
        )

    emit({"cells": selection.n_cells, "shards": len(selection.shards), "rows": rows}, as_json, render)


def read(
    atlas: Where_,
    output: Annotated[Path, typer.Argument(help="The h5ad to write.")],
    where: Predicate = None,
    version: Version = None,
    as_json: Json = False,
) -> None:
    """Write cells of a snapshot into one h5ad file."""
    from cellmill.atlas.reading import read as read_atlas

    if output.exists():
        raise ConfigError("The file exists.", where=str(output), fix="Choose another name, or delete it first.")
    found = read_atlas(atlas, version, where)
    output.parent.mkdir(parents=True, exist_ok=True)
    found.write_h5ad(output)
    emit(
        {"output": str(output), "cells": found.n_obs, "genes": found.n_vars},
        as_json,
        lambda: console.print(f"{found.n_obs:,} cells x {found.n_vars:,} genes written to {output}."),
    )
