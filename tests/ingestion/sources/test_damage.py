"""Files with flipped, missing and doubled bytes are read or refused, never anything else.

TileDB is not among them: a flipped byte of its metadata can end the process or stop it within the library.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cellmill.errors import CellmillError
from cellmill.ingestion.sources.joined import JoinedSource
from tests.ingestion.sources import test_arrow, test_h5mu, test_remote, test_tenx
from tests.ingestion.sources.opened import cache as cache
from tests.ingestion.sources.opened import opened, whole

pytestmark = [pytest.mark.usefixtures("cache"), pytest.mark.filterwarnings("ignore")]


def plain_mtx(folder: Path) -> str:
    test_tenx.write_mtx(folder / "sample", modern=False)
    return "sample"


def arrow(folder: Path) -> str:
    test_arrow.save(test_arrow.lists(test_arrow.dense(), text=True), folder / "a.arrow", "arrow")
    return "a.arrow"


def wide(folder: Path) -> str:
    test_arrow.save(test_arrow.wide(test_arrow.dense()), folder / "a.parquet", "parquet")
    return "a.parquet"


def h5mu(folder: Path) -> str:
    test_h5mu.write_mu(folder / "a.h5mu")
    return "a.h5mu"


WRITERS: dict[str, tuple[Callable[[Path], str], str]] = {
    "10x_h5": (test_remote.tenx_h5, "10x_h5"),
    "10x_mtx": (test_remote.tenx_mtx, "10x_mtx"),
    "plain 10x_mtx": (plain_mtx, "10x_mtx"),
    "loom": (test_remote.loom, "loom"),
    "parquet": (test_remote.parquet, "parquet"),
    "wide parquet": (wide, "parquet"),
    "arrow": (arrow, "parquet"),
    "h5mu": (h5mu, "h5mu"),
}


def damage(data: bytes, rng: np.random.Generator) -> bytes:
    kind, at = rng.integers(4), int(rng.integers(max(len(data), 1)))
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + data[at : at + 64] + data[at:]
    flipped = bytearray(data)
    for place in rng.integers(0, len(data), 1 if kind == 2 else 8) if data else ():
        flipped[place] ^= 1 << int(rng.integers(8))
    return bytes(flipped)


@pytest.mark.parametrize("kind", WRITERS)
def test_damaged_files_are_read_or_refused(tmp_path: Path, kind: str) -> None:
    write, format = WRITERS[kind]
    (tmp_path / "whole").mkdir()
    name = write(tmp_path / "whole")
    rng = np.random.default_rng(0)
    files = sorted(path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*") if path.is_file())
    refused: list[CellmillError] = []
    for _ in range(40):
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        shutil.copytree(tmp_path / "whole", tmp_path / "copy")
        victim = tmp_path / "copy" / files[rng.integers(len(files))]
        victim.write_bytes(damage(victim.read_bytes(), rng))
        try:
            source = opened(tmp_path / "copy" / name, format=format)
            for place in [source.find_counts(1024)] if isinstance(source, JoinedSource) else source.places():
                whole(source, place, 9)
                source.default_names(place)
            source.obs(source.obs_columns())
            source.close()
        except CellmillError as error:
            refused.append(error)
    assert refused
    assert all(error.where for error in refused)
