from pathlib import Path

import anndata as ad
import numpy as np
import pytest

from cellmill.atlas import read
from cellmill.errors import ConfigError
from tests.platform.atlas.builders import small_atlas


def test_read_equals_what_anndata_reads_from_the_shards(tmp_path: Path) -> None:
    snapshot = small_atlas(tmp_path).snapshot()
    found = read(tmp_path)
    assert (found.X.indices.dtype, found.X.data.dtype) == (np.int32, np.float32)
    shards = [ad.read_zarr(tmp_path / entry.shard_path) for entry in snapshot.shards]
    expected = ad.concat(shards, join="outer", fill_value=0)[:, found.var_names]
    assert found.obs["barcode"].tolist() == list(expected.obs_names)
    assert (abs(found.X - expected.X.astype(np.float32)) > 0).nnz == 0
    assert found.var["token"].is_monotonic_increasing
    assert found.obs["n_counts"].tolist() == found.X.sum(axis=1).A1.astype(int).tolist()


def test_part_of_a_snapshot_is_written_and_read_back(tmp_path: Path) -> None:
    small_atlas(tmp_path / "atlas")
    everything = read(tmp_path / "atlas")
    part = read(str(tmp_path / "atlas"), where="donor == 'd1' or fresh")
    kept = (everything.obs["donor"] == "d1") | everything.obs["fresh"].fillna(False).astype(bool)
    assert part.obs["cell_id"].tolist() == everything.obs.loc[kept, "cell_id"].tolist()
    wanted = everything[kept.to_numpy()].X
    assert (abs(part.X - wanted) > 0).nnz == 0
    part.write_h5ad(tmp_path / "part.h5ad")
    again = ad.read_h5ad(tmp_path / "part.h5ad")
    assert again.obs["cell_id"].tolist() == part.obs["cell_id"].tolist()
    assert again.uns["cellmill_atlas"]["where"] == "donor == 'd1' or fresh"
    with pytest.raises(ConfigError, match="No cell"):
        read(tmp_path / "atlas", where="donor == 'x'")
