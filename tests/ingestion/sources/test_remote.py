"""Folders and files of every format in an object store, against the same on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from cellmill.ingestion import IngestConfig, SourceConfig, ingest
from cellmill.storage import Storage
from tests.ingestion.cells import config, counts
from tests.ingestion.sources import test_arrow, test_loom, test_tenx
from tests.ingestion.sources.opened import cache as cache
from tests.ingestion.sources.opened import format_of, opened, whole
from tests.ingestion.sources.s3 import bucket as bucket

pytestmark = pytest.mark.usefixtures("cache")


def tenx_h5(folder: Path) -> str:
    test_tenx.write_v3(folder / "a.h5")
    return "a.h5"


def tenx_mtx(folder: Path) -> str:
    test_tenx.write_mtx(folder / "sample")
    return "sample"


def tenx_outs(folder: Path) -> str:
    test_tenx.write_mtx(folder / "run/outs/filtered_feature_bc_matrix")
    return "run"


def loom(folder: Path) -> str:
    test_loom.write_loom(folder / "a.loom")
    return "a.loom"


def parquet(folder: Path) -> str:
    (folder / "data").mkdir(parents=True)
    for number in range(3):
        found = test_arrow.lists(test_arrow.dense(seed=number))
        test_arrow.save(found, folder / f"data/{number}.parquet", "parquet")
    pq.write_table(test_arrow.gene_table(), folder / "data/gene_metadata.parquet")
    return "data"


WRITERS = [tenx_h5, tenx_mtx, tenx_outs, loom, parquet]


@pytest.fixture
def upload(bucket: str) -> Callable[[Path], str]:
    def put(folder: Path) -> str:
        storage = Storage.open(f"{bucket}/cells")
        for path in folder.rglob("*"):
            if path.is_file():
                storage.put(path.relative_to(folder).as_posix(), path.read_bytes())
        return storage.url

    return put


def test_what_is_read_is_the_same(tmp_path: Path, upload: Callable[[Path], str]) -> None:
    names = {}
    for write in WRITERS:
        (tmp_path / write.__name__).mkdir()
        names[write.__name__] = f"{write.__name__}/{write(tmp_path / write.__name__)}"
    url = upload(tmp_path)
    for kind, name in names.items():
        assert format_of(f"{url}/{name}") == format_of(tmp_path / name) == kind.replace("tenx", "10x")
        here, there = opened(tmp_path / name), opened(f"{url}/{name}")
        for place in here.places():
            assert np.array_equal(whole(there, place, 11), whole(here, place))
        assert there.digest == here.digest
        assert there.obs([]).index.tolist() == here.obs([]).index.tolist()
        here.close()
        there.close()
    atlases: list[Any] = []
    for folder in (str(tmp_path), url):
        sources = tuple(
            SourceConfig(path=f"{folder}/{names[kind]}", dataset=kind, organism="human")
            for kind in ("tenx_mtx", "loom", "parquet")
        )
        settings = config(tmp_path / f"atlas{len(atlases)}", Path("x"), duplicates={"policy": "keep"}).model_dump()
        ingest(IngestConfig.model_validate({**settings, "sources": sources}))
        assert not ingest(IngestConfig.model_validate({**settings, "sources": sources})).changed
        atlases.append(counts(tmp_path / f"atlas{len(atlases)}"))
    assert np.array_equal(atlases[0].to_numpy(), atlases[1].to_numpy())
