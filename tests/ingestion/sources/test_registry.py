"""Formats: found through entry points, recognised by content, named when it is not clear."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cellmill.errors import ConfigError, SourceError
from cellmill.ingestion import IngestConfig, SourceConfig, ingest
from cellmill.ingestion.pipeline import plan
from cellmill.ingestion.sources import Place, registry
from tests.ingestion.cells import config, counts, genes, make_adata, write

PLUGIN = '''
"""Cells as lines of comma-separated counts."""

from functools import cached_property

import numpy as np
import pandas as pd
from scipy import sparse


class CsvSource:
    def __init__(self, place, name):
        self.name, self.url, self.stamp = name, place.url, place.stamp
        self._place = place
        self._table = pd.read_csv(place.local_path(), index_col="barcode")

    @cached_property
    def digest(self):
        return self._place.digest

    def close(self):
        pass

    @property
    def n_cells(self):
        return len(self._table)

    def places(self):
        return ["X"]

    def starts(self, place):
        return np.concatenate([[0], np.cumsum((self._table.to_numpy() > 0).sum(axis=1))])

    def var(self, place):
        return pd.DataFrame(index=self._table.columns)

    def default_names(self, place):
        return "index", None

    def obs_columns(self):
        return []

    def obs(self, columns, start=0, stop=None):
        return pd.DataFrame(index=self._table.index[start:stop])

    def rows(self, place, start, stop):
        return sparse.csr_matrix(self._table.to_numpy()[start:stop])


class Csv:
    name = "csv"

    def recognises(self, place):
        return not place.is_dir and place.head(8) == b"barcode,"

    def open(self, place, name, config):
        return CsvSource(place, name)


FORMAT = Csv()
'''


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Return a function that puts a package with an entry point on the path, as pip would."""

    def put(package: str, code: str, target: str, name: str = "csv") -> None:
        site = tmp_path / f"site-{package}"
        about = site / f"{package}-1.0.dist-info"
        about.mkdir(parents=True)
        (site / f"{package}.py").write_text(code)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (about / "entry_points.txt").write_text(f"[cellmill.sources]\n{name} = {target}\n")
        monkeypatch.syspath_prepend(str(site))
        registry.formats.cache_clear()

    yield put
    registry.formats.cache_clear()


def table(path: Path, n: int = 30) -> tuple[Path, pd.DataFrame]:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.integers(0, 9, (n, 12)), columns=genes(12), index=[f"c{i}" for i in range(n)])
    frame.to_csv(path, index_label="barcode")
    return path, frame


def test_a_plug_in_of_another_package_is_used(tmp_path: Path, install: Callable[..., None]) -> None:
    path, frame = table(tmp_path / "cells.csv")
    with pytest.raises(SourceError, match="it is text"):
        plan(config(tmp_path / "atlas", path))
    install("tiny_csv", PLUGIN, "tiny_csv:FORMAT")
    assert "csv" in registry.formats()
    (planned,) = plan(config(tmp_path / "atlas", path))
    assert (planned.format, planned.location) == ("csv", str(path))
    result = ingest(config(tmp_path / "atlas", path, shard_cells=11))
    assert result.reports[0].cells_in == 30
    pd.testing.assert_frame_equal(counts(tmp_path / "atlas"), frame.sort_index().sort_index(axis=1).astype(float))


def test_two_plug_ins_of_one_name_are_refused(install: Callable[..., None]) -> None:
    install("tiny_one", PLUGIN, "tiny_one:FORMAT")
    install("tiny_two", PLUGIN, "tiny_two:FORMAT")
    with pytest.raises(ConfigError, match="Two plug-ins are called 'csv'"):
        registry.formats()


def test_a_plug_in_takes_no_name_of_ours(install: Callable[..., None]) -> None:
    install("tiny_three", PLUGIN, "tiny_three:FORMAT", "h5ad")
    with pytest.raises(ConfigError, match="called 'h5ad'"):
        registry.formats()


@pytest.mark.parametrize(("code", "target"), [("import nothing_such", "FORMAT"), ("", "NONE")])
def test_a_plug_in_that_cannot_be_imported_is_named(install: Callable[..., None], code: str, target: str) -> None:
    name = f"tiny_broken_{target.lower()}"
    install(name, code, f"{name}:{target}")
    with pytest.raises(ConfigError, match="The plug-in 'csv' cannot be imported") as caught:
        registry.formats()
    assert caught.value.where == f"{name}:{target}"


def test_where_two_formats_recognise_a_file_the_configuration_says_which(
    tmp_path: Path, install: Callable[..., None]
) -> None:
    greedy = PLUGIN.replace('place.head(8) == b"barcode,"', "True").replace('name = "csv"', 'name = "greedy"')
    install("tiny_greedy", greedy, "tiny_greedy:FORMAT", "greedy")
    path = write(make_adata(), tmp_path / "a.h5ad")
    with pytest.raises(ConfigError, match="may be h5ad and greedy") as caught:
        plan(config(tmp_path / "atlas", path))
    assert "`format`" in caught.value.fix
    (planned,) = plan(config(tmp_path / "atlas", path, source={"format": "h5ad"}))
    assert planned.format == "h5ad"


def test_naming_the_format_changes_no_digest(tmp_path: Path) -> None:
    path = write(make_adata(), tmp_path / "a.h5ad")
    plain, named = (plan(config(tmp_path / "atlas", path, source={"format": f}))[0] for f in ("auto", "h5ad"))
    assert plain.digest == named.digest


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    path = write(make_adata(), tmp_path / "a.h5ad")
    with pytest.raises(ConfigError, match="'h5da' is not known") as caught:
        plan(config(tmp_path / "atlas", path, source={"format": "h5da"}))
    assert "h5ad" in caught.value.fix


def test_what_is_built_in_is_an_entry_point_too() -> None:
    import tomllib

    root = Path(__file__).resolve().parents[3]
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert project["entry-points"][registry.GROUP] == registry.BUILT_IN
    for point in entry_points(group=registry.GROUP):
        assert registry.BUILT_IN.get(point.name) == point.value
    assert all(one.name == name for name, one in registry.formats().items())


UNKNOWN: list[tuple[bytes, str]] = [
    (b"", "it is empty"),
    (b"\x1f\x8b\x08rest", "compressed with gzip"),
    (b"PK\x03\x04rest", "zip archive|damaged"),
    (b"\x80\x04\x95pickled", "pickle, which is never loaded"),
    (b"X\n\x00\x00\x00", "R data"),
    (b"<!DOCTYPE html>", "HTML"),
    (b"gene\tcell\n", "it is text"),
    (bytes(range(130, 160)), "begins with the bytes"),
]


@pytest.mark.parametrize(("content", "what"), UNKNOWN)
def test_what_is_not_known_is_described(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "cells.h5ad"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=what) as caught:
        registry.resolve(Place(path), SourceConfig(path=str(path)))
    assert caught.value.where == str(path)


def test_a_folder_of_no_known_kind(tmp_path: Path) -> None:
    settings: Any = {"atlas": str(tmp_path / "atlas"), "backend": "local"}
    with pytest.raises(SourceError, match="it is a folder, but of no known kind"):
        plan(IngestConfig(sources=(SourceConfig(path=str(tmp_path)),), **settings))
