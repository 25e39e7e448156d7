"""h5ad of every encoding since 0.5: read like anndata reads it, and never as a whole."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cellmill.errors import SourceError
from cellmill.ingestion.sources import anndata_group
from tests.ingestion.cells import make_adata, write
from tests.ingestion.sources.opened import opened


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def before_0_7(adata: Any, path: Path, layout: str, text: str) -> None:
    """Write tables as arrays of records, categories into uns, sparse matrices with the attributes of h5sparse."""
    codes = adata.obs["donor"].cat.codes.to_numpy().astype("i1")
    names = {"S": "S20", "O": h5py.string_dtype()}[text]
    obs = np.zeros(adata.n_obs, dtype=[("index", names), ("donor", "i1"), ("age", "<i8")])
    obs["index"] = [name.encode() if text == "S" else name for name in adata.obs_names]
    obs["donor"], obs["age"] = codes, adata.obs["age"]
    var = np.zeros(adata.n_vars, dtype=[("index", names), ("mean", "<f4")])
    var["index"] = [name.encode() if text == "S" else name for name in adata.var_names]
    with h5py.File(path, "w") as file:
        file["obs"], file["var"], file["raw.var"] = obs, var, var
        file["uns/donor_categories"] = np.array([str(name).encode() for name in adata.obs["donor"].cat.categories])
        for key, matrix in (("X", adata.X.log1p()), ("raw.X", adata.X)):
            if layout == "dense":
                file[key] = matrix.toarray()
                continue
            stored = sparse.csr_matrix(matrix) if layout == "csr" else sparse.csc_matrix(matrix)
            group = file.create_group(key)
            group.attrs["h5sparse_format"], group.attrs["h5sparse_shape"] = layout, stored.shape
            for part in ("data", "indices", "indptr"):
                group[part] = getattr(stored, part)


def of_0_7(adata: Any, path: Path, layout: str, text: str) -> None:
    """Write categories aside, with references to them; groups have no encoding."""
    write(adata, path)
    with h5py.File(path, "r+") as file:
        for key in list(file.attrs):
            del file.attrs[key]
        obs = file["obs"]
        obs.attrs["encoding-version"] = "0.1.0"
        codes, categories = obs["donor/codes"][:], obs["donor/categories"][:]
        del obs["donor"]
        obs["__categories/donor"] = categories
        obs["donor"] = codes
        obs["donor"].attrs["categories"] = obs["__categories/donor"].ref
        file.copy("X", "raw/X")
        file.copy("var", "raw/var")
        file["raw"].attrs["encoding-type"], file["raw"].attrs["encoding-version"] = "raw", "0.1.0"
        for table in (file["var"], file["raw/var"]):
            table.attrs["encoding-version"] = "0.1.0"


@pytest.mark.parametrize("layout", ["csr", "csc", "dense"])
@pytest.mark.parametrize(("make", "text"), [(before_0_7, "S"), (before_0_7, "O"), (of_0_7, "")])
def test_old_encodings_are_read_as_anndata_reads_them(
    tmp_path: Path, make: Callable[..., None], text: str, layout: str
) -> None:
    adata = make_adata(40, 25)
    make(adata, tmp_path / "a.h5ad", layout, text)
    other = ad.read_h5ad(tmp_path / "a.h5ad")
    source = opened(tmp_path / "a.h5ad")
    assert list(source.places()) == ["raw.X", "X"]
    assert np.array_equal(source.rows("raw.X", 7, 31).toarray(), adata.X.toarray()[7:31])
    assert np.array_equal(source.rows("X", 0, 40).toarray(), sparse.csr_matrix(other.X).toarray())
    for start, stop in ((0, 40), (3, 9)):
        found = source.obs(source.obs_columns(), start, stop)
        pd.testing.assert_frame_equal(
            found, other.obs.iloc[start:stop], check_index_type=False, check_names=False, check_categorical=False
        )
        assert found["donor"].tolist() == adata.obs["donor"].tolist()[start:stop]
    assert source.var("raw.X").index.tolist() == adata.var_names.tolist()


def test_no_more_than_the_rows_asked_for_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of matrix and columns, by counting what is read of each array."""
    read: dict[str, int] = {}

    class Counting:
        def __init__(self, item: Any) -> None:
            self._item = item

        def __getattr__(self, name: str) -> Any:
            return getattr(self._item, name)

        def __getitem__(self, key: Any) -> Any:
            if isinstance(key, str):
                return Counting(self._item[key])
            values = self._item[key]
            read[self._item.name] = read.get(self._item.name, 0) + values.size
            return values

        def __contains__(self, key: str) -> bool:
            return key in self._item

    adata = make_adata(400, 25)
    adata.layers["dense"] = adata.X.toarray()
    path = write(adata, tmp_path / "a.h5ad")
    source: Any = opened(path)
    assert isinstance(source, anndata_group.AnnDataGroupSource)
    tree: Any = source._tree
    tree._root = Counting(tree._root)
    source._tables.clear()
    monkeypatch.setattr(tree, "check", lambda *_: None)
    monkeypatch.setattr(tree, "check_whole", lambda *_: None)
    assert np.array_equal(source.rows("X", 100, 110).toarray(), adata.X.toarray()[100:110])
    assert np.array_equal(source.rows("layers/dense", 100, 110).toarray(), adata.X.toarray()[100:110])
    source.obs(["donor", "age"], 100, 110)
    entries = adata.X[100:110].nnz
    assert read.pop("/X/indptr") == 401
    assert read.pop("/obs/donor/categories") == 3
    assert read == {
        "/X/data": entries,
        "/X/indices": entries,
        "/layers/dense": 250,
        "/obs/donor/codes": 10,
        "/obs/age": 10,
        "/obs/_index": 10,
    }


def test_a_file_that_this_process_has_open_is_read(tmp_path: Path) -> None:
    path = write(make_adata(), tmp_path / "a.h5ad")
    backed = ad.read_h5ad(path, backed="r")
    assert opened(path).n_cells == backed.n_obs == 50
    backed.file.close()


def test_a_filter_that_is_not_installed_is_named(tmp_path: Path) -> None:
    path = write(make_adata(), tmp_path / "a.h5ad")
    with h5py.File(path, "r+") as file:
        values = file["X/data"][:]
        del file["X/data"]
        settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        settings.set_chunk((values.size,))
        # A number that nobody has registered, for a filter that may be missing when writing.
        settings.set_filter(32999, h5py.h5z.FLAG_OPTIONAL, ())
        space = h5py.h5s.create_simple((values.size,))
        h5py.h5d.create(file["X"].id, b"data", h5py.h5t.NATIVE_FLOAT, space, dcpl=settings)
        file["X/data"].id.write_direct_chunk((0,), values.astype("f4").tobytes())
    with pytest.raises(SourceError, match="HDF5 filter 32999") as caught:
        opened(path).rows("X", 0, 10)
    assert "hdf5plugin" in caught.value.fix


@pytest.mark.parametrize(
    ("edit", "what"),
    [
        (lambda file: file["obs/donor/codes"].__setitem__(3, 99), "codes beyond its 3 categories"),
        (lambda file: file["obs/donor"].attrs.__setitem__("encoding-type", "future"), "kind 'future' is not known"),
        (lambda file: file["obs"].attrs.__delitem__("column-order"), "does not say which columns"),
        (lambda file: file["obs"].attrs.__setitem__("_index", "none"), "has no index 'none'"),
        (lambda file: file["obs"].attrs.__setitem__("column-order", ["donor", "gone"]), "'gone' cannot be read"),
        (lambda file: (file.__delitem__("obs/age"), file["obs"].__setitem__("age", [1, 2])), "has not 50 rows"),
        (lambda file: (file.__delitem__("obs/age"), file["obs"].__setitem__("age", np.ones((50, 2)))), "2 dimensions"),
    ],
)
def test_tables_that_are_damaged_are_refused(tmp_path: Path, edit: Callable[[Any], Any], what: str) -> None:
    path = write(make_adata(), tmp_path / "a.h5ad")
    with h5py.File(path, "r+") as file:
        edit(file)

    def table() -> Any:
        source = opened(path)
        return source.obs(source.obs_columns())

    with pytest.raises(SourceError, match=what) as caught:
        table()
    assert caught.value.where == f"{path}: obs"


def test_real_files_of_every_age_are_read_as_anndata_reads_them(shared_data: Path) -> None:
    """Tables and all matrices, also of files that hold no counts."""
    compared = 0
    alike = [f"example_invalid_{what}.h5ad" for what in ("CL", "assay", "reserved_terms")]
    for path in sorted((shared_data / "formats").rglob("*.h5ad")):
        if path.name.startswith("example_invalid") and path.name not in alike:
            continue
        try:
            other: Any = ad.read_h5ad(path)
        except ImportError:
            # It needs a package that is not here, for a part that has no counts.
            opened(path).close()
            continue
        source = opened(path)
        same = {"check_names": False, "check_dtype": False, "check_index_type": False, "check_column_type": False}
        pd.testing.assert_frame_equal(source.obs(source.obs_columns()), other.obs, **same)  # type: ignore[arg-type]
        for place in source.places():
            matrix, table = {"X": (other.X, other.var)}.get(place) or (
                (other.raw.X, other.raw.var) if place == "raw.X" else (other.layers[place[7:]], other.var)
            )
            var = source.var(place).drop(columns="modality", errors="ignore")
            pd.testing.assert_frame_equal(var, table, **same)  # type: ignore[arg-type]
            last = min(source.n_cells, 60)
            part = matrix[1:last].toarray() if sparse.issparse(matrix) else np.asarray(matrix[1:last])
            np.testing.assert_array_equal(source.rows(place, 1, last).toarray(), part)
            compared += 1
        source.close()
    assert compared > 40
