"""AnnData in zarr: what anndata wrote is read alike, and what is damaged is refused, whichever file of it is gone."""

from __future__ import annotations

import json
import shutil
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import zarr
from numcodecs import BZ2, LZ4, LZMA, Blosc, GZip, Zlib, Zstd
from scipy import sparse
from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec

from cellmill.errors import CellmillError, SourceError
from cellmill.ingestion import ingest
from cellmill.ingestion.config import SourceConfig
from cellmill.ingestion.sources import Place, Source, registry
from tests.ingestion.cells import config, counts, make_adata, write

LAYOUTS = {"csr": sparse.csr_matrix, "csc": sparse.csc_matrix, "dense": lambda matrix: matrix.toarray()}
COMPRESSORS: dict[str, dict[int, Any]] = {
    "blosc": {2: Blosc(), 3: BloscCodec()},
    "gzip": {2: GZip(), 3: GzipCodec()},
    "zstd": {2: Zstd(), 3: ZstdCodec()},
    "lz4": {2: LZ4()},
    "zlib": {2: Zlib()},
    "bz2": {2: BZ2()},
    "lzma": {2: LZMA()},
    "none": {2: None, 3: None},
}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def write_zarr(adata: Any, path: Path, version: Any, **settings: Any) -> Path:
    group = zarr.open_group(path, mode="w", zarr_format=version)
    ad.io.write_elem(group, "/", adata, dataset_kwargs=settings)
    return path


def source_of(path: Path) -> Source:
    return registry.open_source(Place(path), "a", SourceConfig(path=str(path)))


def content(path: Path) -> tuple[Any, ...]:
    source = source_of(path)
    rows = source.rows("X", 0, source.n_cells)
    columns = source.obs(source.obs_columns())
    return rows.toarray(), columns, source.var("X")


def same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    return bool(np.array_equal(one[0], other[0])) and one[1].equals(other[1]) and one[2].equals(other[2])


WRITTEN = [
    *((version, layout, "blosc") for version in (2, 3) for layout in LAYOUTS),
    *((version, "csr", name) for name, known in COMPRESSORS.items() if name != "blosc" for version in known),
]


@pytest.mark.parametrize(("version", "layout", "compressor"), WRITTEN)
def test_what_anndata_wrote_is_read_alike(tmp_path: Path, version: int, layout: str, compressor: str) -> None:
    adata = make_adata(60)
    adata.obs["maybe"] = pd.array([1, None, 3] * 20, dtype="Int64")
    adata.obs["gap"] = pd.Categorical(["a", None, "b"] * 20)
    wanted = adata.X.toarray()
    adata.X = LAYOUTS[layout](adata.X)
    adata.layers["counts"] = adata.X.copy()
    path = write_zarr(adata, tmp_path / "a.zarr", version, compressor=COMPRESSORS[compressor][version])
    source = source_of(path)
    assert source.places() == ["layers/counts", "X"]
    for place in source.places():
        for start, stop in ((0, 60), (0, 0), (17, 41)):
            assert np.array_equal(source.rows(place, start, stop).toarray(), wanted[start:stop])
    pd.testing.assert_frame_equal(source.obs(source.obs_columns(), 5, 50), adata.obs.iloc[5:50], check_index_type=False)
    assert source.var("X").index.tolist() == adata.var_names.tolist()


@pytest.mark.parametrize("index_location", ["start", "end"])
def test_shards_are_read(tmp_path: Path, index_location: str) -> None:
    adata = make_adata(60)
    path = write_zarr(adata, tmp_path / "a.zarr", 3)
    root: Any = zarr.open_group(path, mode="r+")
    values = root["X/data"][:]
    del root["X/data"]
    codec = zarr.codecs.ShardingCodec(chunk_shape=(64,), index_location=index_location)
    array = root.create_array(
        "X/data",
        shape=values.shape,
        dtype=values.dtype,
        chunks=(256,),
        serializer=codec,
        compressors=None,
        filters=None,
    )
    array[:] = values
    found = source_of(path)
    assert np.array_equal(found.rows("X", 0, 60).toarray(), adata.X.toarray())
    assert np.array_equal(found.rows("X", 20, 30).toarray(), adata.X.toarray()[20:30])


def test_an_archive_a_folder_and_an_h5ad_make_the_same_shards(tmp_path: Path) -> None:
    adata = make_adata(60)
    folder = write_zarr(adata, tmp_path / "cells.zarr", 2)
    archive = tmp_path / "zipped" / "cells.zip"
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as sink:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                sink.write(path, Path("cells.zarr") / path.relative_to(folder))
    single = write(adata, tmp_path / "cells.h5ad")
    found = []
    for number, path in enumerate((folder, archive, single)):
        result = ingest(config(tmp_path / f"atlas{number}", path, source={"dataset": "cells"}))
        assert result.reports[0].cells_out == 60
        found.append(counts(tmp_path / f"atlas{number}"))
    pd.testing.assert_frame_equal(found[0], found[1])
    pd.testing.assert_frame_equal(found[0], found[2])


def test_the_digest_is_of_names_and_contents(tmp_path: Path) -> None:
    path = write_zarr(make_adata(20), tmp_path / "a.zarr", 3)
    first = source_of(path)
    shutil.copytree(path, tmp_path / "copy.zarr")
    copy = source_of(tmp_path / "copy.zarr")
    assert copy.digest == first.digest
    chunk = next(p for p in sorted((tmp_path / "copy.zarr/X/data").rglob("*")) if p.name == "0")
    stamp = copy.stamp
    chunk.write_bytes(chunk.read_bytes()[::-1])
    changed = Place(tmp_path / "copy.zarr")
    assert changed.digest != first.digest
    assert changed.stamp != stamp


@pytest.mark.parametrize(("version", "layout"), [(2, "csr"), (2, "dense"), (3, "csc")])
def test_whichever_file_is_lost_or_cut_nothing_wrong_is_read(tmp_path: Path, version: int, layout: str) -> None:
    """Deleting or cutting any one file either changes nothing that is read, or is refused.

    But for chunks of columns, which zarr itself defines to be zeros or empty text where they are not there.
    """
    adata = make_adata(24, 12, density=0.6)
    adata.obs["text"] = [f"t{i}" for i in range(24)]
    adata.X = LAYOUTS[layout](adata.X)
    path = write_zarr(adata, tmp_path / "a.zarr", version)
    _rechunk(path, 12 if layout == "dense" else 64)
    wanted = content(path)
    files = [p for p in sorted(path.rglob("*")) if p.is_file() and p.relative_to(path).parts[0] in ("X", "obs", "var")]
    columns = {p for p in files if p.relative_to(path).parts[1] in ("age", "donor", "text") and p.name.isdigit()}
    columns -= {p for p in columns if "categories" in p.parts}
    assert len(files) > 20
    refused = 0
    for file in files:
        kept = file.read_bytes()
        for damage in [kept[: len(kept) // 2], *([] if file in columns else [None])]:
            if damage is None:
                file.unlink()
            else:
                file.write_bytes(damage)
            try:
                right = same(content(path), wanted)
            except CellmillError as error:
                right = error.where.startswith(str(path))
                refused += 1
            assert right, (file, damage)
            file.write_bytes(kept)
    assert refused > len(files)
    assert same(content(path), wanted)


def _rechunk(path: Path, length: int) -> None:
    """Write numbers again in small chunks, all of which are stored."""
    root: Any = zarr.open_group(path, mode="r+")
    arrays = [name for name, item in root.members(max_depth=None) if isinstance(item, zarr.Array)]
    for name in arrays:
        if root[name].dtype.kind in "iuf" and root[name].size:
            values, attributes = root[name][:], dict(root[name].attrs)
            del root[name]
            with zarr.config.set({"array.write_empty_chunks": True}):
                fresh = root.create_array(name, shape=values.shape, dtype=values.dtype, chunks=(length,) * values.ndim)
                fresh[:] = values
            fresh.attrs.update(attributes)


def test_columns_of_one_value_need_no_chunks(tmp_path: Path) -> None:
    """Zarr 3 does not store chunks of nothing but fill values."""
    adata = make_adata(50)
    adata.obs["one"] = pd.Categorical(["human"] * 50)
    path = write_zarr(adata, tmp_path / "a.zarr", 3)
    assert not list((path / "obs/one/codes").rglob("0"))
    assert set(source_of(path).obs(["one"])["one"]) == {"human"}


def test_lost_chunks_of_a_column_are_found_where_all_were_written(tmp_path: Path) -> None:
    adata = make_adata(48)
    adata.obs["donor"] = pd.Categorical(["d0"] * 16 + ["d1"] * 32)
    path = write_zarr(adata, tmp_path / "a.zarr", 2)
    _rechunk(path, 16)
    assert len(set(source_of(path).obs(["donor"])["donor"])) == 2
    (path / "obs/donor/codes/2").unlink()
    with pytest.raises(SourceError, match="1 of 3 chunks missing"):
        source_of(path).obs(["donor"])


def _with_codec(path: Path, codec: dict[str, Any], dtype: str | None = None) -> None:
    file = path / "X/data/.zarray"
    about = json.loads(file.read_text())
    about["filters"] = [codec]
    about["dtype"] = dtype or about["dtype"]
    file.write_text(json.dumps(about))


@pytest.mark.parametrize("dtype", [None, "|O"])
def test_pickles_are_refused_by_name(tmp_path: Path, dtype: str | None) -> None:
    path = write_zarr(make_adata(20), tmp_path / "a.zarr", 2)
    _with_codec(path, {"id": "pickle", "protocol": 5}, dtype)
    with pytest.raises(SourceError, match="pickles, which are never loaded"):
        source_of(path).rows("X", 0, 20)


@pytest.mark.parametrize("codec", ["json2", "msgpack2", "categorize", "zfpy"])
def test_other_codecs_are_refused(tmp_path: Path, codec: str) -> None:
    path = write_zarr(make_adata(20), tmp_path / "a.zarr", 2)
    _with_codec(path, {"id": codec})
    with pytest.raises(SourceError):
        source_of(path).rows("X", 0, 20)


def test_what_is_no_anndata_is_refused(tmp_path: Path) -> None:
    zarr.open_group(tmp_path / "a.zarr", mode="w").create_array("X", shape=(3,), dtype="f4")
    with pytest.raises(SourceError, match="No format that is known recognises it"):
        source_of(tmp_path / "a.zarr")
    with pytest.raises(SourceError, match="no obs and no var"):
        registry.open_source(Place(tmp_path / "a.zarr"), "a", SourceConfig(path="x", format="zarr"))


FLAT = "formats/10x/10x-10k-subset.zarr"


def test_a_flat_group_of_before_0_7(shared_data: Path) -> None:
    """Its tables are arrays of records, its matrix is dense."""
    source = source_of(shared_data / FLAT)
    adata = ad.read_zarr(shared_data / FLAT)
    assert source.n_cells == 10_000
    assert source.default_names("X") == ("gene_ids", "index")
    assert source.var("X")["gene_ids"].tolist() == adata.var["gene_ids"].tolist()
    assert source.obs([], 7, 9).index.tolist() == adata.obs_names[7:9].tolist()
    for start in (0, 1995, 9990):
        assert np.array_equal(source.rows("X", start, start + 10).toarray(), adata.X[start : start + 10])
