"""Sources behind URLs: fetched once, resumed, checked, and the same as on disk."""

from __future__ import annotations

import gzip
import http.server
import os
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import anndata as ad
import pytest

from cellmill.errors import CellmillError, ConfigError, DownloadError, SourceError
from cellmill.ingestion import IngestConfig, SourceConfig, ingest
from cellmill.ingestion.pipeline import plan
from cellmill.ingestion.planning import expand
from cellmill.ingestion.sources import Place
from cellmill.ingestion.sources.finding import find_places
from cellmill.ingestion.sources.remote import bare
from cellmill.storage import Storage
from tests.ingestion.cells import config, counts, make_adata, write
from tests.ingestion.test_object_store import bucket  # noqa: F401 - a fixture


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves the files of a folder; `faults` of a path are used up one a request."""

    root: ClassVar[Path]
    faults: ClassVar[dict[str, list[str]]] = {}
    asked: ClassVar[list[tuple[str, str, str]]] = []
    tagged: ClassVar[bool] = True
    sized: ClassVar[bool] = True

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        wanted = self.headers.get("Range", "")
        self.asked.append((self.command, path, wanted))
        file = self.root / path.lstrip("/")
        if not file.is_file():
            self.send_error(404)
            return
        fault = self.faults[path].pop(0) if body and self.faults.get(path) else ""
        if fault == "503":
            self.send_error(503)
            return
        data = file.read_bytes()
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        start, stop = int(first or 0), int(last) + 1 if last else len(data)
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        kind = "text/html" if path.endswith(".html") else "application/octet-stream"
        self.send_header("Content-Type", kind)
        if body or self.sized:
            self.send_header("Content-Length", str(stop - start))
        if self.tagged:
            self.send_header("ETag", f'"{hash(data):x}"')
        self.end_headers()
        if body:
            part = data[start:stop]
            self.wfile.write(part[: len(part) // 2] if fault == "cut" else part)

    def log_message(self, format: str, *args: Any) -> None:
        return


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("CELLMILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("cellmill.ingestion.sources.remote.time.sleep", lambda _: None)
    monkeypatch.setattr("cellmill.ingestion.sources.web_file._WEB_BLOCK", 4096)
    Handler.root, Handler.faults, Handler.asked, Handler.tagged = tmp_path / "www", {}, [], True
    Handler.sized = True
    Handler.root.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def fetched(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache/sources/files").iterdir())


def gets(path: str) -> list[str]:
    return [wanted for command, asked, wanted in Handler.asked if command == "GET" and asked == path]


def remote_config(atlas: Path, *urls: str, **settings: Any) -> IngestConfig:
    sources = tuple(SourceConfig(path=url, organism="human", **settings) for url in urls)
    return IngestConfig(atlas=str(atlas), sources=sources, backend="local")


def test_a_file_on_a_web_server_is_fetched_once_and_equals_the_local_one(tmp_path: Path, web: str) -> None:
    path = write(make_adata(), Handler.root / "a.h5ad")
    ingest(config(tmp_path / "here", path))
    settings = remote_config(tmp_path / "there", f"{web}/a.h5ad")
    result = ingest(settings)
    assert counts(tmp_path / "there").equals(counts(tmp_path / "here"))
    assert result.reports[0].url == f"{web}/a.h5ad"
    assert not ingest(settings).changed
    # Once to see what it is, once to have it.
    assert len(gets("/a.h5ad")) == 2
    assert [p.name for p in fetched(tmp_path)] == [Place(path).digest]
    path.write_bytes(write(make_adata(seed=5), tmp_path / "b.h5ad").read_bytes())
    assert ingest(settings).changed
    assert len(gets("/a.h5ad")) == 4


def test_a_download_goes_on_where_it_was_cut(tmp_path: Path, web: str) -> None:
    path = write(make_adata(400), Handler.root / "a.h5ad")
    Handler.faults["/a.h5ad"] = ["cut", "503", "cut", ""]
    place = Place(f"{web}/a.h5ad")
    assert place.local_path().read_bytes() == path.read_bytes()
    starts = [int(wanted.removeprefix("bytes=").rstrip("-") or 0) for wanted in gets("/a.h5ad")]
    assert len(starts) == 4
    assert starts[0] == 0 < starts[1] == starts[2] < starts[3]


def test_a_server_that_never_sends_all_is_given_up_and_resumed_later(tmp_path: Path, web: str) -> None:
    path = write(make_adata(400), Handler.root / "a.h5ad")
    Handler.faults["/a.h5ad"] = ["cut"] * 20
    with pytest.raises(DownloadError, match="failed 6 times") as caught:
        Place(f"{web}/a.h5ad").local_path()
    assert caught.value.where == f"{web}/a.h5ad"
    Handler.faults = {}
    assert Place(f"{web}/a.h5ad").local_path().read_bytes() == path.read_bytes()
    assert gets("/a.h5ad")[-1] != ""


def test_a_server_without_tags_is_asked_again_for_every_opening(tmp_path: Path, web: str) -> None:
    Handler.tagged = False
    path = write(make_adata(), Handler.root / "a.h5ad")
    first = Place(f"{web}/a.h5ad")
    assert first.stamp == f"blake3-{Place(path).digest}"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    assert Place(f"{web}/a.h5ad").stamp not in ("", first.stamp)


def test_a_server_that_tells_the_size_with_the_file_alone(tmp_path: Path, web: str) -> None:
    Handler.sized = False
    path = write(make_adata(), Handler.root / "a.h5ad")
    assert Place(f"{web}/a.h5ad").digest == Place(path).digest


@pytest.mark.parametrize(
    ("path", "kind", "what"),
    [
        ("/none.h5ad", SourceError, "does not exist"),
        ("/page.html", DownloadError, "did not send the file"),
        ("/text.h5ad", SourceError, "it is text"),
        ("/*.h5ad", ConfigError, "cannot list"),
        ("/none.zarr", SourceError, "does not exist"),
    ],
)
def test_what_is_no_file_is_refused(tmp_path: Path, web: str, path: str, kind: type[CellmillError], what: str) -> None:
    (Handler.root / "page.html").write_text("<html>Log in</html>")
    (Handler.root / "text.h5ad").write_text("gene,cell\n")
    with pytest.raises(kind, match=what) as caught:
        plan(remote_config(tmp_path / "atlas", f"{web}{path}"))
    assert caught.value.where.startswith(web)


@pytest.mark.parametrize("settings", [{}, {"format": "10x_mtx"}, {"format": "10x_outs"}])
@pytest.mark.parametrize("end", ["", "/"])
def test_a_10x_folder_of_a_web_server_is_read_by_the_url_of_its_matrix(
    tmp_path: Path, web: str, end: str, settings: dict[str, str]
) -> None:
    folder = Handler.root / "filtered_feature_bc_matrix"
    folder.mkdir()
    for name, text in {
        "matrix.mtx.gz": "%%MatrixMarket matrix coordinate integer general\n1 1 1\n1 1 7\n",
        "features.tsv.gz": "ENSG00000141510\tTP53\tGene Expression\n",
        "barcodes.tsv.gz": "AAAC-1\n",
    }.items():
        (folder / name).write_bytes(gzip.compress(text.encode()))
    with pytest.raises(SourceError, match="web servers cannot list") as caught:
        plan(remote_config(tmp_path / "atlas", f"{web}/{folder.name}{end}", **settings))
    matrix = f"{web}/{folder.name}/matrix.mtx.gz"
    assert matrix in caught.value.fix
    (planned,) = plan(remote_config(tmp_path / "atlas", matrix))
    assert planned.n_cells == 1


def test_a_server_that_does_not_answer(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not answer"):
        plan(remote_config(tmp_path / "atlas", "http://127.0.0.1:9/a.h5ad"))


def test_passwords_and_signatures_are_not_written_down(tmp_path: Path, web: str) -> None:
    write(make_adata(), Handler.root / "a.h5ad")
    signed = f"{web.replace('http://', 'http://user:secret@')}/a.h5ad?id=7&X-Amz-Signature=hidden&sig=hidden"
    assert bare(signed) == f"{web}/a.h5ad?id=7"
    result = ingest(remote_config(tmp_path / "atlas", signed, dataset="a"))
    assert result.reports[0].url == f"{web}/a.h5ad?id=7"
    written = [p for p in (tmp_path / "atlas").rglob("*") if p.is_file()]
    assert not [p for p in written if b"hidden" in p.read_bytes() or b"secret" in p.read_bytes()]


def test_processes_that_want_one_file_fetch_it_once(tmp_path: Path, web: str) -> None:
    write(make_adata(), Handler.root / "a.h5ad")
    with ThreadPoolExecutor(6) as pool:
        paths = list(pool.map(lambda _: Place(f"{web}/a.h5ad").local_path(), range(6)))
    assert len(set(paths)) == 1
    assert len(gets("/a.h5ad")) == 1


def test_the_cache_is_bounded_and_gives_up_what_was_not_used_longest(
    tmp_path: Path, web: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    for name in "abc":
        sizes.append(write(make_adata(seed=ord(name)), Handler.root / f"{name}.h5ad").stat().st_size)
    monkeypatch.setenv("CELLMILL_CACHE_GB", str((sizes[0] + sizes[1] + sizes[2] // 2) / 1e9))
    first, second = (Place(f"{web}/{name}.h5ad").local_path() for name in "ab")
    os.utime(second, (1, 1))
    third = Place(f"{web}/c.h5ad").local_path()
    assert fetched(tmp_path) == sorted([first, third])
    assert Place(f"{web}/b.h5ad").local_path() == second
    assert len(gets("/b.h5ad")) == 2
    monkeypatch.setenv("CELLMILL_CACHE_GB", "much")
    with pytest.raises(ConfigError, match="'much' is no number"):
        Place(f"{web}/a.h5ad").local_path()


def test_a_copy_that_was_damaged_is_found(tmp_path: Path, web: str) -> None:
    write(make_adata(), Handler.root / "a.h5ad")
    path = Place(f"{web}/a.h5ad").local_path()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(SourceError, match="copy in the cache is damaged"):
        assert Place(f"{web}/a.h5ad").digest
    assert Place(f"{web}/a.h5ad").digest == Place(Handler.root / "a.h5ad").digest


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"digest": 1, "size": 1}'])
def test_a_record_of_the_cache_that_does_not_read_is_none(tmp_path: Path, web: str, text: str) -> None:
    path = write(make_adata(), Handler.root / "a.h5ad")
    Place(f"{web}/a.h5ad").local_path()
    for record in (tmp_path / "cache/sources/index").iterdir():
        record.write_text(text)
    assert Place(f"{web}/a.h5ad").local_path().read_bytes() == path.read_bytes()


def test_a_file_that_changes_while_it_is_fetched_is_refused(tmp_path: Path, web: str) -> None:
    path = write(make_adata(), Handler.root / "a.h5ad")
    place = Place(f"{web}/a.h5ad")
    assert place.stamp
    path.write_bytes(b"other")
    with pytest.raises(DownloadError, match="changed while it was fetched"):
        place.local_path()


def write_zarr(path: Path, version: Any) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ad.settings.zarr_write_format = version
        make_adata(60).write_zarr(path)
    return path


@pytest.mark.parametrize("version", [2, 3])
def test_zarr_is_read_in_place(tmp_path: Path, web: str, bucket: str, version: int) -> None:  # noqa: F811
    """From a folder, a web server and an object store, with one digest; nothing is put into the cache."""
    folder = write_zarr(Handler.root / "a.zarr", version)
    storage = Storage.open(f"{bucket}/cells/a.zarr")
    for file in folder.rglob("*"):
        if file.is_file():
            storage.put(file.relative_to(folder).as_posix(), file.read_bytes())
    storage.put("X", b"")  # as some programs mark a folder
    places = [str(folder), f"{web}/a.zarr", *([f"{bucket}/cells/a.zarr"] if version == 3 else [])]
    found = []
    for number, location in enumerate(places):
        result = ingest(remote_config(tmp_path / f"atlas{number}", location, dataset="a"))
        found.append((result.reports[0].source_digest, counts(tmp_path / f"atlas{number}")))
        assert result.reports[0].url == location
    assert {digest for digest, _ in found} == {found[0][0]}
    assert all(table.equals(found[0][1]) for _, table in found)
    assert not (tmp_path / "cache/sources").exists()
    chunk = next(name for name in storage.list() if name.startswith("X/data/") and name.endswith("0"))
    storage.delete(chunk)
    (folder / chunk).unlink()
    for number, location in enumerate(places):
        with pytest.raises(SourceError, match="some are missing"):
            ingest(remote_config(tmp_path / f"atlas{number}", location, dataset="a"))


def test_patterns_find_files_and_folders_of_an_object_store(tmp_path: Path, bucket: str) -> None:  # noqa: F811
    storage = Storage.open(bucket)
    data = write(make_adata(), tmp_path / "a.h5ad").read_bytes()
    for key in ("x/a.h5ad", "x/b.h5ad", "y/a.h5ad", "x/c.zarr/zarr.json", "x/c.txt", "a.h5ad"):
        storage.put(key, data)

    def names(pattern: str) -> list[str]:
        return [place.location.removeprefix(f"{bucket}/") for place in find_places(f"{bucket}/{pattern}")]

    assert names("x/*.h5ad") == ["x/a.h5ad", "x/b.h5ad"]
    assert names("*/a.h5ad") == ["x/a.h5ad", "y/a.h5ad"]
    assert names("x/*.zarr") == ["x/c.zarr"]
    assert names("*.h5ad") == ["a.h5ad"]
    assert names("[xz]/[ab]*.h5ad") == ["x/a.h5ad", "x/b.h5ad"]
    with pytest.raises(SourceError, match="No file has such a name"):
        names("z/*.h5ad")


def test_files_of_an_object_store_are_fetched_once(
    tmp_path: Path,
    bucket: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CELLMILL_CACHE", str(tmp_path / "cache"))
    storage = Storage.open(f"{bucket}/in")
    for name, seed in (("a", 1), ("b", 2)):
        storage.put(f"{name}.h5ad", write(make_adata(30, seed=seed), tmp_path / f"{name}.h5ad").read_bytes())
    ingest(config(tmp_path / "here", tmp_path / "a.h5ad", tmp_path / "b.h5ad"))
    settings = remote_config(tmp_path / "there", f"{bucket}/in/*.h5ad")
    assert [(place.location, name) for place, name, _ in expand(settings)] == [
        (f"{bucket}/in/a.h5ad", "a"),
        (f"{bucket}/in/b.h5ad", "b"),
    ]
    ingest(settings)
    assert counts(tmp_path / "there").equals(counts(tmp_path / "here"))
    kept = {path: path.stat().st_ino for path in fetched(tmp_path)}
    assert len(kept) == 2
    assert not ingest(settings).changed
    assert {path: path.stat().st_ino for path in fetched(tmp_path)} == kept
    storage.put("a.h5ad", (tmp_path / "b.h5ad").read_bytes())
    with pytest.raises(ConfigError, match="same content"):
        ingest(settings)


def test_an_object_that_changes_while_it_is_fetched_is_refused(
    tmp_path: Path,
    bucket: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CELLMILL_CACHE", str(tmp_path / "cache"))
    storage = Storage.open(bucket)
    storage.put("a.bin", b"1" * 100)
    place = Place(f"{bucket}/a.bin")
    assert place.head(3) == b"111"
    storage.put("a.bin", b"2" * 100)
    with pytest.raises(DownloadError, match="changed while it was fetched"):
        place.local_path()


def test_what_an_object_store_does_not_have(tmp_path: Path, bucket: str) -> None:  # noqa: F811
    def refusal(url: str) -> CellmillError:
        with pytest.raises((SourceError, ConfigError)) as caught:
            plan(remote_config(tmp_path / "atlas", url))
        assert caught.value.where.startswith(url.partition("*")[0].rstrip("/"))
        return caught.value

    assert "does not exist" in refusal(f"{bucket}/none.h5ad").what
    assert "no such bucket" in refusal("s3://no-such-bucket/a.h5ad").what
    assert "no such bucket" in refusal("s3://no-such-bucket/*.h5ad").what
    assert "cannot be opened" in refusal("gs:///a.h5ad").what


def test_a_file_url_is_a_path(tmp_path: Path) -> None:
    path = write(make_adata(), tmp_path / "my cells.h5ad")
    (planned,) = plan(remote_config(tmp_path / "atlas", path.as_uri()))
    assert planned.url == str(path)


@pytest.mark.parametrize("name", ["run#1", "a%20b", "c?d", "donor[1]", "é ü"])
def test_names_of_files_mean_nothing(tmp_path: Path, bucket: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setenv("CELLMILL_CACHE", str(tmp_path / "cache"))
    (tmp_path / name).mkdir()
    path = write(make_adata(), tmp_path / name / f"{name}.h5ad")
    (planned,) = plan(remote_config(tmp_path / "atlas", str(path)))
    assert planned.url == str(path)
    storage = Storage.open(f"{bucket}/{name}")
    storage.put(path.name, path.read_bytes())
    there = Place(storage.join(path.name))
    assert (there.name, Place(path).name, there.digest) == (path.name, path.name, planned.source_digest)


def test_a_bucket_is_a_folder(tmp_path: Path, bucket: str) -> None:  # noqa: F811
    folder = write_zarr(tmp_path / "a.zarr", 3)
    for file in (file for file in folder.rglob("*") if file.is_file()):
        Storage.open(bucket).put(file.relative_to(folder).as_posix(), file.read_bytes())
    (planned,) = plan(remote_config(tmp_path / "atlas", bucket))
    assert planned.source_digest == Place(folder).digest


def test_too_small_a_disk(tmp_path: Path, web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write(make_adata(), Handler.root / "a.h5ad")
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr("cellmill.ingestion.sources.cache.shutil.disk_usage", lambda _: usage)
    with pytest.raises(CellmillError, match="the disk"):
        Place(f"{web}/a.h5ad").local_path()
