"""The stream from an Arrow export: on Ray, with wide tokens, and where it is damaged; the rest is in `test_layouts`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cellmill.atlas import Atlas
from cellmill.atlas.exporting import export_arrow
from cellmill.errors import IntegrityError
from cellmill.genes import N_SPECIALS
from tests.platform.atlas.builders import add_shard, make_features, random_counts
from tests.platform.stream.test_stream import equal, stream


@pytest.fixture(scope="module")
def arrow_atlas(stream_atlas: Atlas, tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    url = tmp_path_factory.mktemp("export") / "atlas"
    with pytest.MonkeyPatch.context() as patch:
        # Batches of few cells, so that runs of rows cross many of them.
        patch.setattr("cellmill.atlas.arrow_writing.CHUNK", 400)
        export_arrow(stream_atlas.snapshot(), url)
    return Atlas.open(url)


def test_through_ray_data(stream_atlas: Atlas, arrow_atlas: Atlas, ray_cluster: None) -> None:
    there = list(stream(arrow_atlas, backend="ray", data_cpus=2).epoch(0))
    here = list(stream(stream_atlas).epoch(0))
    assert len(here) == len(there)
    assert all(equal(one, other) for one, other in zip(here, there, strict=True))


def test_tokens_that_need_more_than_16_bits(tmp_path: Path) -> None:
    atlas = Atlas.create(tmp_path / "zarr")
    atlas.vocabulary_store.allocate(make_features(range(70_000)))
    kinds = {"kind": ["A"] * 200}
    atlas.commit([add_shard(atlas, "far", random_counts(200, 60, seed=1), genes=range(69_000, 69_060), obs=kinds)])
    export_arrow(atlas.snapshot(), tmp_path / "arrow")
    export = Atlas.open(tmp_path / "arrow")
    with pa.OSFile(str(tmp_path / "arrow" / export.snapshot().shards[0].shard_path)) as file:
        assert pa.ipc.open_file(file).schema.field("genes").type == pa.list_(pa.uint32())
    for one, other in zip(stream(export).epoch(0), stream(atlas).epoch(0), strict=True):
        assert equal(one, other)
        assert one.gene.dtype == other.gene.dtype == np.uint32
        assert one.gene[one.gene >= N_SPECIALS].min() >= 69_000


def test_damage_ends_the_stream_or_is_counted(stream_atlas: Atlas, tmp_path: Path) -> None:
    export_arrow(stream_atlas.snapshot(), tmp_path / "atlas")
    atlas = Atlas.open(tmp_path / "atlas")
    entry = atlas.snapshot().shards[0]
    path = tmp_path / "atlas" / entry.shard_path
    bad = bytearray(path.read_bytes())
    bad[len(bad) // 2] ^= 1
    path.write_bytes(bad)
    with pytest.raises(IntegrityError, match=entry.digest):
        list(stream(atlas).epoch(0))
    source = stream(atlas, on_corrupt="skip")
    assert sum(batch.n_cells for batch in source.epoch(0)) == source.n_cells - entry.n_cells
    assert source.skipped == {f"{entry.dataset}/{entry.digest}": entry.n_cells}
