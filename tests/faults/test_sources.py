"""Sources on an object store and a web server that fail: the cells that are in the file, or an error that names it."""

from __future__ import annotations

import gzip
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests
from scipy import io

from cellmill import store_errors
from cellmill.atlas import Atlas
from cellmill.errors import CellmillError, SourceError
from cellmill.ingestion import IngestConfig, SourceConfig, ingest, tasks
from cellmill.ingestion.chunk import process_chunk
from cellmill.ingestion.sources import remote
from tests.faults.flaky_proxy import FAULTS, SILENT
from tests.faults.s3_server import environment, make_bucket
from tests.ingestion.cells import counts, make_adata

Flaky = Callable[..., str]
Digest = dict[str, tuple[str, str]]
NAMES = {"h5ad": "a.h5ad", "zarr": "b.zarr", "10x_mtx": "c/matrix.mtx.gz", "parquet": "d.parquet"}
SCHEMES = ("s3", "http")


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, s3_server: str) -> None:
    for key, value in environment(s3_server).items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("CELLMILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("cellmill.remote_store.SILENCE_S", 0.25)
    monkeypatch.setattr("cellmill.ingestion.sources.web_file._READ_S", 0.25)
    monkeypatch.setattr(remote, "_FIRST_PAUSE_S", 0.01)


def write_all(folder: Path, seed: int) -> None:
    """Write the four sources; those of another seed have the same shape."""
    parts = [make_adata(40, 30, seed=10 * seed + i) for i in range(4)]
    (folder / "c").mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ad.settings.zarr_write_format = 3
        parts[0].write_h5ad(folder / "a.h5ad")
        parts[1].write_zarr(folder / "b.zarr")
    io.mmwrite(folder / "c/matrix.mtx", parts[2].X.T.astype(np.int64))
    texts = {
        "matrix.mtx": (folder / "c/matrix.mtx").read_text(),
        "features.tsv": "".join(f"{gene}\t{gene}\tGene Expression\n" for gene in parts[2].var_names),
        "barcodes.tsv": "".join(f"{name}\n" for name in parts[2].obs_names),
    }
    for name, text in texts.items():
        (folder / f"c/{name}.gz").write_bytes(gzip.compress(text.encode()))
    (folder / "c/matrix.mtx").unlink()
    frame = pd.DataFrame(parts[3].X.toarray(), columns=parts[3].var_names).assign(barcode=parts[3].obs_names.tolist())
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), folder / "d.parquet", row_group_size=8)


def upload(folder: Path, url: str, only: str = "") -> None:
    """Put files where everybody may read them."""
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name.startswith(only.partition("/")[0]):
            answer = requests.put(f"{url}/{name}", path.read_bytes(), headers={"x-amz-acl": "public-read"}, timeout=10)
            answer.raise_for_status()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("sources")
    for seed in (0, 1):
        write_all(root / str(seed), seed)
    return root / "0", root / "1"


@pytest.fixture(scope="module")
def uploaded(s3_server: str, folders: tuple[Path, Path]) -> str:
    """Return where on the server the sources are: bucket and prefix."""
    path = f"{make_bucket(s3_server).removeprefix('s3://')}/in"
    upload(folders[0], f"{s3_server}/{path}")
    return path


def settings(atlas: Path, root: str, *kinds: str) -> IngestConfig:
    sources = tuple(
        SourceConfig(path=f"{root}/{NAMES[kind]}", dataset=kind, organism="human") for kind in kinds or NAMES
    )
    return IngestConfig(atlas=str(atlas), sources=sources, backend="local", shard_cells=16)


def ingested(config: IngestConfig) -> Digest:
    """Ingest, and return the identity of each source and a digest of its cells' counts."""
    result = ingest(config)
    atlas = Atlas.open(config.atlas)
    atlas.verify().check()
    tables = {report.dataset: counts(atlas, f"dataset == '{report.dataset}'") for report in result.reports}
    return {
        report.dataset: (report.source_digest, str(pd.util.hash_pandas_object(tables[report.dataset]).sum()))
        for report in result.reports
    }


@pytest.fixture(scope="module")
def expected(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Digest:
    return ingested(settings(tmp_path_factory.mktemp("local") / "atlas", str(folders[0])))


def root_of(scheme: str, path: str, proxy: str) -> str:
    return f"s3://{path}" if scheme == "s3" else f"{proxy}/{path}"


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    ("rate", "faults"), [(0.05, FAULTS), (0.1, ("short", "cut")), (0.05, SILENT)], ids=["mixed", "short", "silent"]
)
def test_a_server_that_fails_now_and_then_gives_what_the_disk_gives(
    uploaded: str, expected: Digest, flaky: Flaky, tmp_path: Path, scheme: str, rate: float, faults: tuple[str, ...]
) -> None:
    proxy = flaky(rate, seed=1, faults=faults)
    assert ingested(settings(tmp_path / "atlas", root_of(scheme, uploaded, proxy))) == expected
    assert sum(requests.get(f"{proxy}/__counts", timeout=10).json().values()) > 3


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("kind", "fault"), list(zip(NAMES, ("cut", "short", "503 before", "stalls"), strict=True)))
def test_a_server_that_fails_for_good_is_told_with_the_source(
    uploaded: str, flaky: Flaky, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, kind: str, fault: str
) -> None:
    monkeypatch.setattr("cellmill.remote_store.RETRIES", 1)
    monkeypatch.setattr(store_errors, "_ATTEMPTS", 2)
    config = settings(tmp_path / "atlas", root_of(scheme, uploaded, flaky(1, faults=(fault,))), kind)
    with pytest.raises(CellmillError) as caught:
        ingest(config)
    assert NAMES[kind].partition("/")[0] in caught.value.where
    assert not (tmp_path / "atlas").exists()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", NAMES)
def test_a_source_that_is_replaced_while_it_is_read_is_read_as_it_was_or_refused(
    s3_server: str,
    uploaded: str,
    expected: Digest,
    folders: tuple[Path, Path],
    flaky: Flaky,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scheme: str,
    kind: str,
) -> None:
    upload(folders[0], f"{s3_server}/{uploaded}", NAMES[kind])
    read = process_chunk

    def replaced(*arguments: Any) -> Any:
        upload(folders[1], f"{s3_server}/{uploaded}", NAMES[kind])
        return read(*arguments)

    monkeypatch.setattr(tasks, "process_chunk", replaced)
    config = settings(tmp_path / "atlas", root_of(scheme, uploaded, flaky(0)), kind)
    try:
        if kind != "zarr" and (kind, scheme) != ("parquet", "s3"):
            # These were fetched before.
            assert ingested(config) == {kind: expected[kind]}
            return
        with pytest.raises(CellmillError, match="was changed") as caught:
            ingest(config)
        assert NAMES[kind].partition("/")[0] in caught.value.where
        assert Atlas.open(tmp_path / "atlas").snapshot().version == 0
    finally:
        upload(folders[0], f"{s3_server}/{uploaded}", NAMES[kind])


def test_a_web_server_without_ranges_is_read(uploaded: str, expected: Digest, flaky: Flaky, tmp_path: Path) -> None:
    proxy = flaky(1, faults=("whole",))
    assert ingested(settings(tmp_path / "atlas", root_of("http", uploaded, proxy))) == expected


def test_a_web_server_that_tells_no_change_is_read_or_refused(
    uploaded: str, expected: Digest, flaky: Flaky, tmp_path: Path
) -> None:
    root = root_of("http", uploaded, flaky(1, faults=("untagged",)))
    files = [kind for kind in NAMES if kind != "zarr"]
    assert ingested(settings(tmp_path / "atlas", root, *files)) == {kind: expected[kind] for kind in files}
    with pytest.raises(SourceError, match="nothing would tell a change"):
        ingest(settings(tmp_path / "atlas", root, "zarr"))


@pytest.mark.parametrize("kind", NAMES)
def test_a_file_of_this_machine_that_is_written_over_while_it_is_read_is_refused(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    shutil.copytree(folders[0], tmp_path / "in")
    read = process_chunk

    def replaced(*arguments: Any) -> Any:
        done = read(*arguments)
        # In place, so that who has a file open reads on in the new one.
        for path in (path for path in (tmp_path / "in").rglob("*") if path.is_file()):
            path.write_bytes((folders[1] / path.relative_to(tmp_path / "in")).read_bytes())
        return done

    monkeypatch.setattr(tasks, "process_chunk", replaced)
    with pytest.raises(SourceError, match="was changed while it was being read") as caught:
        ingest(settings(tmp_path / "atlas", str(tmp_path / "in"), kind))
    assert NAMES[kind].partition("/")[0] in caught.value.where
    assert Atlas.open(tmp_path / "atlas").snapshot().version == 0
    assert not list((tmp_path / "atlas/staging").rglob("*.*"))
