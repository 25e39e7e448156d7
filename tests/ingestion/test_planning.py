"""Plans are made side by side, wherever tasks run, and are the same everywhere."""

import dataclasses
import io
import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
from rich.console import Console
from scipy import sparse
from scipy.io import mmwrite

from cellmill import console
from cellmill.atlas import Atlas
from cellmill.console import progress
from cellmill.errors import CountsError, ResourceError
from cellmill.ingestion import ingest, planning
from cellmill.ingestion.pipeline import plan
from cellmill.ingestion.plan import plan_source
from tests.ingestion.cells import config, make_adata, write


def plain(value: Any) -> Any:
    """Return a plan or a part of it as what compares by value, with the types of all parts."""
    if dataclasses.is_dataclass(value):
        return type(value), [plain(getattr(value, field.name)) for field in dataclasses.fields(value)]
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, tuple | list):
        return type(value), [plain(one) for one in value]
    if isinstance(value, dict):
        return [(key, plain(one)) for key, one in value.items()]
    return value


def files(folder: Path) -> list[Path]:
    """Write cells in several formats and layouts."""
    rows, columns = make_adata(40, seed=1), make_adata(700, seed=2)
    columns.X = sparse.csc_matrix(columns.X)
    columns.layers["counts"] = columns.X
    store = folder / "store.zarr"
    make_adata(30, seed=3).write_zarr(store)
    peaks = ad.AnnData(make_adata(25, 3, seed=4).X, obs=make_adata(25, seed=4).obs)
    peaks.var_names = ["chr1:100-200", "chr1:300-420", "chr2:50-90"]
    return [
        write(rows, folder / "rows.h5ad"),
        write(columns, folder / "columns.h5ad"),
        store,
        write(peaks, folder / "peaks.h5ad"),
    ]


@pytest.mark.usefixtures("ray_cluster")
def test_plans_are_the_same_through_ray_and_not_made_by_the_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("regions.bed").write_text("chr1\t90\t210\nchr1\t310\t400\nchr2\t40\t100\n")
    more = {"peaks": {"regions": "regions.bed", "regions_assembly": "hg38"}, "source": {"assembly": "hg38"}}
    settings = config(tmp_path / "atlas", *files(tmp_path), shard_cells=25, **more)
    local = plan(settings)
    assert [one.place for one in local] == ["X", "layers/counts", "X", "X"]

    def fails(*arguments: Any) -> Any:
        raise AssertionError("the driver plans")

    monkeypatch.setattr(planning, "plan_source", fails)
    remote = plan(settings.model_copy(update={"backend": "ray"}))
    assert [plain(one) for one in remote] == [plain(one) for one in local]


@pytest.mark.usefixtures("ray_cluster")
def test_a_source_that_cannot_be_planned_is_named_by_its_error_through_ray(tmp_path: Path) -> None:
    logs = make_adata(40, seed=2)
    logs.X = sparse.csr_matrix(np.log1p(logs.X.toarray()))
    paths = [write(make_adata(20), tmp_path / "a.h5ad"), write(logs, tmp_path / "b.h5ad")]
    with pytest.raises(CountsError, match="log-transformed") as caught:
        plan(config(tmp_path / "atlas", *paths, backend="ray"))
    assert str(paths[1]) in caught.value.where


def dies_at_one(number: int) -> int:
    if number == 1:
        os._exit(1)
    return number


@pytest.mark.usefixtures("ray_cluster")
def test_a_source_whose_task_dies_is_named() -> None:
    from cellmill.cluster import ClusterConfig
    from cellmill.ingestion.job import RayBackend

    backend = RayBackend(ClusterConfig(), task_memory_mb=64)
    assert sorted(backend.gather(float, ["first.h5ad"] * 300)) == [(n, float(n)) for n in range(300)]
    with pytest.raises(ResourceError, match="3 times") as caught:
        list(backend.gather(dies_at_one, ["first.h5ad", "second.h5ad"]))
    assert caught.value.where == "second.h5ad"


def test_sources_are_planned_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [write(make_adata(5, seed=seed), tmp_path / f"{seed}.h5ad") for seed in range(2)]
    both = threading.Barrier(2, timeout=20)
    real = plan_source

    def waits(*arguments: Any) -> Any:
        both.wait()
        return real(*arguments)

    monkeypatch.setattr(planning, "plan_source", waits)
    plans = plan(config(tmp_path / "atlas", *paths))
    assert [plan.dataset for plan in plans] == ["0", "1"]


@pytest.mark.slow
def test_each_node_makes_once_what_its_tasks_need_beside_them(tmp_path: Path) -> None:
    cells = make_adata(40_000, 20)
    cells.X = sparse.csc_matrix(cells.X)
    path = write(cells, tmp_path / "columns.h5ad")
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.ingestion.two_nodes", str(path), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    made = {name: list((tmp_path / name).glob("prepared/*/header.json")) for name in ("head", "worker", "driver")}
    assert {name: len(folders) for name, folders in made.items()} == {"head": 1, "worker": 1, "driver": 0}
    ingest(config(tmp_path / "local", path, task_memory_mb=64, shard_cells=10_000))
    here = Atlas.open(tmp_path / "local").snapshot().shards
    assert json.loads(done.stdout.splitlines()[-1]) == [[list(entry.key), entry.checksum] for entry in here]


def tells(number: int) -> str:
    with progress(100, f"fetching {number}", unit="bytes") as advance:
        for _ in range(30):
            time.sleep(0.1)
            advance(3)
    return "fetched"


@pytest.mark.usefixtures("ray_cluster")
def test_what_a_task_on_ray_is_at_is_shown_by_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    from cellmill.cluster import ClusterConfig
    from cellmill.ingestion import job

    shown = io.StringIO()
    monkeypatch.setattr(console, "console", Console(file=shown, width=120))
    monkeypatch.setattr(console, "_PLAIN_INTERVAL_S", 0.0)
    monkeypatch.setattr(job, "_LOOK_S", 0.2)
    backend = job.RayBackend(ClusterConfig(), task_memory_mb=64)
    assert dict(backend.gather(tells, ["a", "b"])) == {0: "fetched", 1: "fetched"}
    for number in range(2):
        assert f"fetching {number}: " in shown.getvalue()
    assert re.search(r"fetching 1: [1-9]\d? of 100 bytes, [\d.]+ a second, \d+ s left", shown.getvalue())


@pytest.mark.parametrize("layout", ["csc", "mtx"])
def test_bringing_columns_into_rows_tells_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(console, "console", Console(file=shown, width=120))
    monkeypatch.setattr(console, "_PLAIN_INTERVAL_S", 0.0)
    monkeypatch.setattr("cellmill.ingestion.sources.stored_rows.ENTRIES_AT_ONCE", 1000)
    cells = make_adata(700, seed=2)
    if layout == "csc":
        cells.X = sparse.csc_matrix(cells.X)
        path = write(cells, tmp_path / "columns.h5ad")
    else:
        path = write_mtx(cells, tmp_path / "columns")
    plan(config(tmp_path / "atlas", path))
    n = f"{cells.X.nnz:,}"
    lines = re.findall(rf"sorting \S*(?:: X)? by cells: ([\d,]+) of {n} values, .* a second(.*)", shown.getvalue())
    told = [int(done.replace(",", "")) for done, _ in lines]
    assert told == sorted(told)
    assert told[-1] == cells.X.nnz
    if layout == "csc":
        assert len(told) > 10
        assert all("s left" in left for _, left in lines[:-1])


def test_digesting_tells_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(console, "console", Console(file=shown, width=120))
    monkeypatch.setattr(console, "_PLAIN_INTERVAL_S", 0.0)
    monkeypatch.setattr("cellmill.digest._BLOCK", 1000)
    file, store = write(make_adata(40), tmp_path / "file.h5ad"), tmp_path / "store.zarr"
    make_adata(40, seed=1).write_zarr(store)
    plan(config(tmp_path / "atlas", file, store))
    sizes = {"file.h5ad": file.stat().st_size}
    sizes["store.zarr"] = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    for name, size in sizes.items():
        lines = re.findall(rf"digesting {name}: ([\d,]+) of {size:,} bytes, [\d.,]+ a second(.*)", shown.getvalue())
        told = [int(done.replace(",", "")) for done, _ in lines]
        assert told == sorted(told)
        assert (told[-1], lines[-1][1]) == (size, "")
        assert len(told) > 10
        assert all("s left" in left for _, left in lines[:-1])


def write_mtx(cells: Any, folder: Path) -> Path:
    """Write cells as 10x does: entries in the order of cells."""
    folder.mkdir()
    mmwrite(folder / "matrix.mtx", sparse.csc_matrix(cells.X.T.astype(int)))
    (folder / "barcodes.tsv").write_text("\n".join(cells.obs_names))
    (folder / "genes.tsv").write_text("\n".join(f"{name}\t{name}" for name in cells.var_names))
    return folder
