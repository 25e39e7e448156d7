"""Files that are made to exhaust memory or to run code are refused, in a process that measures its memory."""

from __future__ import annotations

import gzip
import json
import re
import resource
import shutil
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pytest
import zarr
from numcodecs import GZip, Zlib, Zstd

from cellmill.errors import CellmillError
from cellmill.ingestion import IngestConfig, SourceConfig, ingest
from cellmill.ingestion.sources import registry
from tests.children import forkserver
from tests.ingestion.cells import make_adata, write

_MORE_MB = 400
"""How much memory a refusal may take, far below what any of the files would grow to."""


def _deflated(n: int, wbits: int = 15) -> bytes:
    """Return a stream that grows to `n` times 16 MB of zeros; it is a thousandth of that, and quick to make."""
    encoder = zlib.compressobj(9, zlib.DEFLATED, wbits)
    zeros = b"\0" * (1 << 24)
    first = encoder.compress(zeros) + encoder.flush(zlib.Z_FULL_FLUSH)
    again = encoder.compress(zeros) + encoder.flush(zlib.Z_FULL_FLUSH)
    return first + again * (n - 1) + encoder.flush()


def _h5(edit: Callable[[h5py.File], None]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = write(make_adata(), folder / "a.h5ad")
        with h5py.File(path, "r+") as file:
            edit(file)
        return path

    return make


def _replace(file: h5py.File, key: str, **settings: Any) -> h5py.Dataset:
    attributes = dict(file[key].attrs)
    del file[key]
    made = file.create_dataset(key, **settings)
    made.attrs.update(attributes)
    return made


def grown(key: str, dtype: str, length: int) -> Callable[[h5py.File], None]:
    """Put a chunk in place of an array that grows to 10 GB."""

    def edit(file: h5py.File) -> None:
        made = _replace(
            file, key, shape=(length,), dtype=dtype, chunks=(1 << 20,), maxshape=(None,), compression="gzip"
        )
        made.id.write_direct_chunk((0,), _deflated(600))

    return edit


def grown_dense(file: h5py.File) -> None:
    del file["X"]
    made = file.create_dataset("X", shape=(50, 40), dtype="f4", chunks=(50, 40), compression="gzip")
    made.id.write_direct_chunk((0, 0), _deflated(600))


def claimed(key: str, dtype: Any, n: int) -> Callable[[h5py.File], None]:
    def edit(file: h5py.File) -> None:
        _replace(file, key, shape=(n,), dtype=dtype, chunks=(1 << 16,), compression="gzip")

    return edit


def claimed_shape(file: h5py.File) -> None:
    file["X"].attrs["shape"] = (10**13, 10**13)


def claimed_dense(file: h5py.File) -> None:
    del file["X"]
    file.create_dataset("X", shape=(50, 50_000_000_000), dtype="f4", chunks=(50, 1000), compression="gzip")


def one_huge_chunk(file: h5py.File) -> None:
    made = _replace(
        file, "X/data", shape=(800,), dtype="f4", chunks=(400_000_000,), maxshape=(None,), compression="gzip"
    )
    made.id.write_direct_chunk((0,), _deflated(100))


def opaque(file: h5py.File) -> None:
    del file["obs/age"]
    file["obs"].create_dataset("age", data=np.full(50, np.void(b"\x80\x04.")))


def references(file: h5py.File) -> None:
    del file["var/_index"]
    made = file["var"].create_dataset("_index", shape=(40,), dtype=h5py.ref_dtype)
    made[:] = [file["X"].ref] * 40


def lists(file: h5py.File) -> None:
    del file["obs/_index"]
    made = file["obs"].create_dataset("_index", shape=(50,), dtype=h5py.vlen_dtype(np.int32))
    for i in range(50):
        made[i] = [i]


def elsewhere(file: h5py.File) -> None:
    del file["X"]
    file["X"] = h5py.ExternalLink("/etc/hostname", "/X")


def outside(file: h5py.File) -> None:
    del file["X"]
    file.create_dataset("X", shape=(50, 40), dtype="u1", external=[("/etc/hostname", 0, 2000)])


def loop(file: h5py.File) -> None:
    del file["X"]
    file["X"] = h5py.SoftLink("/X")


def _zarr(edit: Callable[[Path], None], compressor: Any = None, name: str = "a.zarr") -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / name
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            group = zarr.open_group(path, mode="w", zarr_format=2)
            ad.io.write_elem(group, "/", make_adata(), dataset_kwargs={"compressor": compressor} if compressor else {})
        edit(path)
        return path

    return make


def _about(path: Path, **changes: Any) -> None:
    about = json.loads(path.read_text())
    path.write_text(json.dumps(about | changes))


def blosc_header(path: Path) -> None:
    chunk = bytearray((path / "X/data/0").read_bytes())
    chunk[4:8] = struct.pack("<I", 2**31 - 100)
    (path / "X/data/0").write_bytes(bytes(chunk))


def grown_gzip(path: Path) -> None:
    (path / "X/data/0").write_bytes(_deflated(600, 31))


def grown_zlib(path: Path) -> None:
    (path / "X/indptr/0").write_bytes(_deflated(600))


def grown_zstd(path: Path) -> None:
    # A frame that says its size.
    (path / "X/data/0").write_bytes(Zstd().encode(b"\0" * (1 << 29)))


def endless_zstd(path: Path) -> None:
    # A frame that does not: magic number, descriptor, window, then blocks of one byte, repeated 131,072 times.
    block = (131072 << 3 | 1 << 1).to_bytes(3, "little") + b"\0"
    last = (131072 << 3 | 1 << 1 | 1).to_bytes(3, "little") + b"\0"
    (path / "X/data/0").write_bytes(b"\x28\xb5\x2f\xfd\x00\x58" + block * 80_000 + last)


def claimed_zarr(path: Path) -> None:
    for part in ("data", "indices"):
        _about(path / f"X/{part}/.zarray", shape=[10**13])


def claimed_index(path: Path) -> None:
    _about(path / "obs/_index/.zarray", shape=[10**12], chunks=[10**12])


def huge_zarr_chunk(path: Path) -> None:
    _about(path / "X/data/.zarray", chunks=[10**10])


def twice_compressed(path: Path) -> None:
    _about(path / "X/data/.zarray", filters=[{"id": "zlib", "level": 1}])


def _zip_bomb(folder: Path) -> Path:
    made = _zarr(lambda path: None)(folder)
    archive = folder / "a.zarr.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as sink:
        for path in sorted(made.rglob("*")):
            if path.is_file() and path.relative_to(made).as_posix() != "X/data/0":
                sink.write(path, path.relative_to(made))
        with sink.open("X/data/0", "w", force_zip64=True) as member:
            for _ in range(40):
                member.write(b"\0" * (1 << 24))
    shutil.rmtree(made)
    return archive


def _mtx_bomb(folder: Path) -> Path:
    (folder / "mtx").mkdir()
    (folder / "mtx/barcodes.tsv.gz").write_bytes(_deflated(600, 31))
    (folder / "mtx/features.tsv.gz").write_bytes(_deflated(600, 31))
    header = gzip.compress(b"%%MatrixMarket matrix coordinate integer general\n40 50 900\n")
    (folder / "mtx/matrix.mtx.gz").write_bytes(header + _deflated(600, 31))
    return folder / "mtx"


STRING = h5py.string_dtype()
CASES: list[tuple[str, Callable[[Path], Path], str]] = [
    ("data grows", _h5(grown("X/data", "f4", 800)), "grows to more than"),
    ("indptr grows", _h5(grown("X/indptr", "i4", 51)), "grows to more than"),
    ("a dense matrix grows", _h5(grown_dense), "grows to more than"),
    ("codes grow", _h5(grown("obs/donor/codes", "i1", 50)), "grows to more than"),
    ("names grow", _h5(grown("obs/_index", "S16", 50)), "grows to more than"),
    ("10 TB of values", _h5(claimed("X/data", "f4", 2_500_000_000_000)), "claims 10,000"),
    ("10 TB of rows", _h5(claimed("X/indptr", "i8", 1_250_000_000_000)), "claims 10,000"),
    ("10 TB, dense", _h5(claimed_dense), "claims 10,000"),
    ("a shape of 10^26", _h5(claimed_shape), "inconsistent"),
    ("10 TB of names", _h5(claimed("obs/_index", STRING, 1_250_000_000_000)), "claims 10,000"),
    ("one chunk of 1.6 GB", _h5(one_huge_chunk), "blocks of 1.6 GB"),
    ("opaque objects", _h5(opaque), "neither numbers nor text"),
    ("references", _h5(references), "neither numbers nor text"),
    ("lists for names", _h5(lists), "neither numbers nor text"),
    ("another file", _h5(elsewhere), "in another file"),
    ("raw bytes of another file", _h5(outside), "lies in another file"),
    ("a link to itself", _h5(loop), "too many links"),
    ("blosc header", _zarr(blosc_header), "grows to more than"),
    ("gzip grows", _zarr(grown_gzip, GZip()), "grows to more than"),
    ("zlib grows", _zarr(grown_zlib, Zlib()), "grows to more than"),
    ("zstd grows", _zarr(grown_zstd, Zstd()), "grows to more than"),
    ("zstd without a size", _zarr(endless_zstd, Zstd()), "grows to more than"),
    ("zarr of 40 TB", _zarr(claimed_zarr), "some are missing"),
    ("zarr names, 10^12", _zarr(claimed_index), "some are missing|must be decoded whole"),
    ("zarr chunk of 40 GB", _zarr(huge_zarr_chunk), "must be decoded whole"),
    ("compressed twice", _zarr(twice_compressed), "compressed twice"),
    ("zip archive", _zip_bomb, "would grow to"),
    ("mtx", _mtx_bomb, "have grown to more|larger than"),
]


def memory_mb(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1e3


def _attempt(path: Path, atlas: Path, sink: Any) -> None:
    # What a process already has counts for nothing; a refusal that needs gigabytes more dies here.
    registry.formats()
    limit = int((memory_mb("VmSize") + 4_000) * 1e6)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    Path("/proc/self/clear_refs").write_text("5")
    before = memory_mb("VmRSS")
    source = SourceConfig(path=str(path), organism="human", obs="all")
    try:
        ingest(IngestConfig(atlas=str(atlas), sources=(source,), backend="local"))
        sink.send(("nothing", "", 0.0))
    except CellmillError as error:
        sink.send((type(error).__name__, f"{error.what} {error.where}", memory_mb("VmHWM") - before))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever it is, the test shall say
        sink.send((type(error).__name__, repr(error), memory_mb("VmHWM") - before))


@pytest.mark.parametrize(("make", "what"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_it_is_refused_without_exhausting_memory(tmp_path: Path, make: Callable[[Path], Path], what: str) -> None:
    path = make(tmp_path)
    stored = sum(p.stat().st_size for p in ([path] if path.is_file() else path.rglob("*")))
    assert stored < 40e6
    context = forkserver()
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_attempt, args=(path, tmp_path / "atlas", theirs))
    child.start()
    theirs.close()
    assert ours.poll(120), "it does not end"
    kind, text, more = ours.recv()
    child.join()
    assert kind == "SourceError", text
    assert re.search(what, text), text
    assert str(path) in text
    assert more < _MORE_MB


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.999])
def test_a_file_that_is_cut_short_is_refused_wherever_it_ends(tmp_path: Path, share: float) -> None:
    path = write(make_adata(200), tmp_path / "a.h5ad")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CellmillError, match="cut short") as caught:
        ingest(IngestConfig(atlas=str(tmp_path / "atlas"), sources=(SourceConfig(path=str(path)),), backend="local"))
    assert "compare its size" in caught.value.fix
